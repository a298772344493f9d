"""Bounds the connections of one address: those that came last are closed, so that others find room.

gRPC bounds connections in all and knows no other bound, nor does it let anybody see a connection before it accepts it.
So a thread looks which connections the kernel has on the server's port, and shuts those down that are too many: gRPC
sees that their clients have gone. An IPv6 address is one with all of its /64, which a host may choose from.
"""

import contextlib
import ipaddress
import logging
import os
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

_TABLES = ("/proc/self/net/tcp", "/proc/self/net/tcp6")
_LISTENING = "0A"
_SECONDS, _SECONDS_IN_A_CROWD = 1.0, 0.1  # from one look to the next: if all fit by far, else
_SHARE = 0.05  # of the time, at most, that is spent on looking: the kernel's table has other programs' connections too
_SECONDS_BETWEEN_LOGS = 10.0


class AddressBound:
    """Watches a port from construction until close(); Linux only, elsewhere it does nothing.

    port: TCP, in this network namespace. most: connections of one address. closed: called with how many were closed.
    """

    def __init__(self, port: int, most: int, closed: Callable[[int], object]) -> None:
        self._port, self._most, self._closed = port, most, closed
        self._seen: dict[int, str] = {}  # the address of each connection, by its socket's inode, in order of arrival
        self._logged = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        if any(os.path.exists(table) for table in _TABLES):
            self._thread = threading.Thread(target=self._watch, name="seqloom-addresses", daemon=True)
            self._thread.start()
        else:
            log.warning("connections: those of one address are not bounded on this system")

    def close(self) -> None:
        """Ends the thread."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        pause = _SECONDS
        while not self._ended.wait(pause):
            start = time.perf_counter()
            try:
                crowd = self._look()
            except OSError:
                log.exception("connections: those of one address cannot be bounded now")
                crowd = False
            pause = max(_SECONDS_IN_A_CROWD if crowd else _SECONDS, (time.perf_counter() - start) / _SHARE)

    def _look(self) -> bool:
        """Closes what is too many; returns whether any address has more than half of what it may have."""
        present = dict(connections_to(self._port))
        self._seen = {inode: address for inode, address in self._seen.items() if inode in present} | present
        by_address: defaultdict[str, list[int]] = defaultdict(list)
        for inode, address in self._seen.items():
            by_address[address].append(inode)
        surplus = {address: inodes[self._most :] for address, inodes in by_address.items() if len(inodes) > self._most}
        if surplus:
            count = shut_down({inode for inodes in surplus.values() for inode in inodes})
            self._closed(count)
            if count and time.monotonic() - self._logged > _SECONDS_BETWEEN_LOGS:
                self._logged = time.monotonic()
                log.warning("connections: more than %d from %s: the last are closed", self._most, ", ".join(surplus))
        return any(2 * len(inodes) > self._most for inodes in by_address.values())


def connections_to(port: int) -> Iterator[tuple[int, str]]:
    """Yields inode and address of every TCP connection that this network namespace has accepted on a port."""
    suffix = f":{port:04X}"
    for table in _TABLES:
        with contextlib.suppress(FileNotFoundError), open(table) as file:  # without IPv6 there is no second one
            for line in file.read().splitlines()[1:]:
                if suffix not in line:
                    continue
                _, local, remote, state, _, _, _, _, _, inode, *_ = line.split()
                if local.endswith(suffix) and state != _LISTENING and inode != "0":  # 0: not accepted, or closed
                    yield int(inode), _address(remote)


def shut_down(inodes: set[int]) -> int:
    """Ends those of this process's connections whose sockets have these inodes; returns their number."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # it was closed meanwhile, or its client has gone
            if _inode(os.readlink(f"/proc/self/fd/{name}")) not in inodes:
                continue
            copy = os.dup(int(name))  # the number may be another file's by now: the copy's inode tells
            if os.fstat(copy).st_ino not in inodes:
                os.close(copy)
                continue
            with socket.socket(fileno=copy) as connection:
                connection.shutdown(socket.SHUT_RDWR)
            count += 1
    return count


def _inode(link: str) -> int | None:
    return int(link[8:-1]) if link.startswith("socket:[") else None


def _address(text: str) -> str:
    """Returns the address in a table's "ADDRESS:PORT", which has the bytes of each 32 bits in the machine's order."""
    words = bytes.fromhex(text.partition(":")[0])
    raw = b"".join(struct.pack("=I", word) for word in struct.unpack(f">{len(words) // 4}I", words))
    if len(raw) == 4:
        return str(ipaddress.IPv4Address(raw))
    address = ipaddress.IPv6Address(raw)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))
