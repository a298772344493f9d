"""The HTTP server: /metrics for Prometheus and /healthz for load balancers, in threads beside the event loop.

A connection that is not answered within seconds is closed, and beyond the limit of connections the oldest is closed:
so clients that send nothing, or send slowly, cannot keep others out.
"""

import contextlib
import http.client
import io
import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TypeAlias
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from seqloom_server.config import split_address

log = logging.getLogger(__name__)

_Request: TypeAlias = socket.socket | tuple[bytes, socket.socket]  # a connection, or the datagram of a UDP server
_ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

_SECONDS_PER_REQUEST = 10.0  # from the connection to the last byte of the answer
_MAX_CONNECTIONS = 32
_MAX_HEADER_BYTES = 16_384  # of a request, with its first line
_SECONDS_TO_CLOSE = 0.05


class HttpServer:
    """Serves from construction until close(). Raises OSError if it cannot listen on `address`.

    serving: returns whether the gRPC service is up, for /healthz. address: HOST:PORT with the actual port.
    """

    def __init__(self, address: str, registry: CollectorRegistry, serving: Callable[[], bool]) -> None:
        host, port = split_address(address)
        self._metrics = make_wsgi_app(registry)
        self._serving = serving
        server = _Server6 if host.startswith("[") else _Server
        self._server = server((host.strip("[]"), port), _Handler)
        self._server.set_app(self._answer)
        self.address = f"{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_SECONDS_TO_CLOSE,), name="seqloom-http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        if method not in ("GET", "HEAD"):
            return _text(start_response, "405 Method Not Allowed", "expected GET or HEAD")
        started: list[tuple[str, list[tuple[str, str]]]] = []

        def start(
            status: str, headers: list[tuple[str, str]], exc_info: _ExcInfo | None = None, /
        ) -> Callable[[bytes], object]:
            started.append((status, headers))
            return lambda _: None

        try:
            body = b"".join(self._get({**environ, "REQUEST_METHOD": "GET"}, start))
        except Exception:
            log.exception("an HTTP request failed")
            raise
        [(status, headers)] = started
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return [body] if method == "GET" else []

    def _get(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return self._scrape(environ, start_response)
        if path == "/healthz":
            if self._serving():
                return _text(start_response, "200 OK", "ok")
            return _text(start_response, "503 Service Unavailable", "not serving")
        return _text(start_response, "404 Not Found", "expected /metrics or /healthz")

    def _scrape(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            metrics: Iterable[bytes] = self._metrics(environ, start_response)
        except (TypeError, ValueError):  # the Accept header names an invalid version
            metrics = self._metrics({**environ, "HTTP_ACCEPT": ""}, start_response)
        return metrics


def _text(start_response: StartResponse, status: str, text: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = _MAX_CONNECTIONS  # more wait for a second or longer, as the system drops them

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self._lock = threading.Lock()
        self._since: dict[socket.socket, float] = {}  # when each connection was opened, oldest first
        super().__init__(address, handler)

    def process_request(self, request: _Request, client_address: object) -> None:
        assert isinstance(request, socket.socket), "TCP"
        with self._lock:
            while len(self._since) >= _MAX_CONNECTIONS:
                self._drop(next(iter(self._since)))
            self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Closes connections that take too long; serve_forever() calls it periodically."""
        super().service_actions()
        with self._lock:
            overdue = time.monotonic() - _SECONDS_PER_REQUEST
            for request in [request for request, since in self._since.items() if since < overdue]:
                self._drop(request)

    def shutdown_request(self, request: _Request) -> None:
        assert isinstance(request, socket.socket), "TCP"
        with self._lock:
            self._since.pop(request, None)
        super().shutdown_request(request)

    def _drop(self, request: socket.socket) -> None:
        """Shuts a connection down, which wakes its thread and ends it."""
        del self._since[request]
        with contextlib.suppress(OSError):  # the client has closed it already
            request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), OSError):  # clients that disconnect or time out are not logged
            log.exception("an HTTP request failed")

    def server_bind(self) -> None:
        # not HTTPServer's, which looks the host's name up in DNS and may block
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = _SECONDS_PER_REQUEST  # of one read or write

    def setup(self) -> None:
        super().setup()
        self.rfile = _Head(self.connection.makefile("rb", 0))

    def get_stderr(self) -> io.StringIO:
        """Discards wsgiref's traceback of a response that could not be written."""
        return io.StringIO()

    def log_message(self, format: str, *arguments: object) -> None:
        """Logs nothing: scrapes are frequent."""


class _Head(io.BufferedReader):
    """Reads the head of a request by lines; raises HTTPException, answered with 431, where it is too long."""

    _left: int | None = None  # bytes; None before the first line, which the handler checks itself

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(-1 if size is None else size)
        first = self._left is None
        self._left = (_MAX_HEADER_BYTES if self._left is None else self._left) - len(line)
        if self._left < 0 and not first:
            raise http.client.HTTPException(f"expected at most {_MAX_HEADER_BYTES} bytes")
        return line
