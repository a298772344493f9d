"""A connection of HTTP/2 frames by hand: what no gRPC client would send, over one that answers as a client must."""

import contextlib
import socket
import struct
import threading

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CANCEL = struct.pack(">I", 8)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """RFC 9113, 4.1."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header_block(path: str, *more: tuple[str, str]) -> bytes:
    """The headers of a gRPC call, literal and without indexing (RFC 7541, 6.2.2); each of less than 127 bytes."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"), ("te", "trailers")]
    fields += [("content-type", "application/grpc"), *more]
    return b"".join(b"\0" + b"".join(bytes([len(part)]) + part.encode() for part in field) for field in fields)


class RawConnection:
    """Connects to HOST:PORT from `source`, sends the preface, and answers settings and pings while `with` lasts.

    counts: frames that came, by kind. closed: set when the server has closed the connection.
    """

    def __init__(self, address: str, source: str = "127.0.0.1") -> None:
        host, port = address.split(":")
        self.counts: dict[int, int] = {}
        self.goaway = b""  # the debug data of a GOAWAY
        self.closed = threading.Event()
        self._socket = socket.create_connection((host, int(port)), timeout=60, source_address=(source, 0))
        self._sending = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))

    def __enter__(self) -> "RawConnection":
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Raises OSError where the server has closed the connection."""
        with self._sending:
            self._socket.sendall(data)

    def _read(self) -> None:
        with self._socket.makefile("rb") as incoming, contextlib.suppress(OSError):
            while len(head := incoming.read(9)) == 9:
                kind, flags, _ = struct.unpack(">BBI", head[3:])
                payload = incoming.read(int.from_bytes(head[:3], "big"))
                self.counts[kind] = self.counts.get(kind, 0) + 1
                if kind in (SETTINGS, PING) and not flags & ACK:
                    self.send(frame(kind, ACK, 0, payload if kind == PING else b""))
                if kind == GOAWAY:
                    self.goaway = payload[8:]
        self.closed.set()
