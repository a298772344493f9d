"""/metrics for Prometheus and /healthz for load balancers, from threads of their own, which never hold up the loop."""

import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from seqloom_server.config import split_address

_SECONDS_PER_REQUEST = 10.0
_SECONDS_TO_CLOSE = 0.05


class HttpServer:
    """Serves from construction until close(). Raises OSError where it cannot listen on `address`.

    serving: whether the service is up, for /healthz. address: HOST:PORT with the real port.
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

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _text(start_response, "405 Method Not Allowed", "only GET is answered here")
        path = environ["PATH_INFO"]
        if path == "/metrics":
            metrics: Iterable[bytes] = self._metrics(environ, start_response)
            return metrics
        if path == "/healthz":
            if self._serving():
                return _text(start_response, "200 OK", "ok")
            return _text(start_response, "503 Service Unavailable", "not serving")
        return _text(start_response, "404 Not Found", "there are /metrics and /healthz here")


def _text(start_response: Callable[..., Any], status: str, text: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # not HTTPServer's, which asks the name service for the host's name and may wait for it
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = _SECONDS_PER_REQUEST  # a caller that sends nothing holds a thread no longer

    def log_message(self, format: str, *arguments: Any) -> None:
        """Scrapes are not worth a line each."""
