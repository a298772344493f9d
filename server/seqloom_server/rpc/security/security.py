"""The server's security as its options say: reads the files, keeps them watched, and opens the port."""

import asyncio
from typing import TypeVar

import grpc

from seqloom_server.config import ServerConfig
from seqloom_server.metrics import Metrics
from seqloom_server.rpc.security.certificates import CertificatePaths, Certificates
from seqloom_server.rpc.security.gate import REASONS, Gate
from seqloom_server.rpc.security.tokens import Tokens, parse
from seqloom_server.rpc.security.watched_files import BrokenFile, WatchedFiles, read_file

T = TypeVar("T")


class Security:
    """gate: None if the server asks for no tokens. Raises BrokenFile for files that cannot be used.

    watch() and close() belong to one event loop.
    """

    def __init__(self, config: ServerConfig, metrics: Metrics) -> None:
        self.gate: Gate | None = None
        self._certificates: Certificates | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._watched: list[WatchedFiles[Tokens] | WatchedFiles[grpc.ServerCertificateConfiguration]] = []
        _check_options(config)

        def failed(files: str) -> None:
            metrics.reload_failures_total.labels(files=files).inc()

        for files in ("tls", "tokens"):
            metrics.reload_failures_total.labels(files=files)  # so that 0 is exported
        for reason in REASONS:
            metrics.unauthorized_total.labels(reason=reason)
        if config.tls_certificate:
            paths = CertificatePaths(config.tls_certificate, config.tls_key, config.tls_client_ca)
            certificates = WatchedFiles("tls", paths.all, paths.read, self._use, lambda: failed("tls"))
            self._certificates = Certificates(_first("tls", certificates), mutual=bool(config.tls_client_ca))
            self._watched.append(certificates)
        if config.tokens:
            tokens = WatchedFiles(
                "tokens",
                [config.tokens],
                lambda: _tokens_of(config.tokens),
                self._take,
                lambda: failed("tokens"),
            )
            self.gate = Gate(_first("tokens", tokens), metrics)
            self._watched.append(tokens)

    def watch(self) -> None:
        """Reads the files again whenever they change, until close()."""
        self._tasks = [asyncio.create_task(watched.watch()) for watched in self._watched]

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def open_port(self, server: grpc.aio.Server, address: str) -> int:
        """Opens a port of the server, with TLS if there is a certificate; returns its number. Raises RuntimeError."""
        if self._certificates is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, self._certificates.credentials())

    def _use(self, configuration: grpc.ServerCertificateConfiguration) -> None:
        assert self._certificates is not None
        self._certificates.use(configuration)

    def _take(self, tokens: Tokens) -> None:
        assert self.gate is not None
        self.gate.take(tokens)


def _check_options(config: ServerConfig) -> None:
    if bool(config.tls_certificate) != bool(config.tls_key):
        given, missing = ("certificate", "key") if config.tls_certificate else ("key", "certificate")
        raise BrokenFile(f"tls_{missing}: is missing: expected one with tls_{given}")
    if config.tls_client_ca and not config.tls_certificate:
        raise BrokenFile("tls_certificate: is missing: expected one with tls_client_ca")


def _tokens_of(path: str) -> Tokens:
    text = read_file(path)
    try:
        return parse(text)
    except BrokenFile as error:
        raise BrokenFile(f"{path}: {error}") from None


def _first(option: str, watched: WatchedFiles[T]) -> T:
    try:
        return watched.first()
    except BrokenFile as error:
        raise BrokenFile(f"{option}: {error}") from None
