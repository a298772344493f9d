"""The server's TLS: its certificate and key, and the authorities of its clients, checked before gRPC gets them.

gRPC asks for them at each new connection; open connections keep what they began with.
"""

import collections
import ssl
from dataclasses import dataclass

import grpc

from seqloom_server.rpc.security.watched_files import BrokenFile, read_file


@dataclass(frozen=True, slots=True)
class CertificatePaths:
    """Where the PEM files are. client_ca: "" where clients need no certificate."""

    certificate: str
    key: str
    client_ca: str = ""

    @property
    def all(self) -> list[str]:
        return [path for path in (self.certificate, self.key, self.client_ca) if path]

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Reads and checks the files. Raises BrokenFile, also for a key that is not the certificate's."""
        before = [_read(path, option) for path, option in zip(self.all, _OPTIONS, strict=False)]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:  # Python reads them by path only
            context.load_cert_chain(self.certificate, self.key, password=lambda: b"")  # never asks at a terminal
        except ssl.SSLError as error:
            raise BrokenFile(
                f"{self.certificate} and {self.key}: {_REASONS.get(error.reason or '', _UNREADABLE)}"
                f" ({error.reason or error})"
            ) from None
        except OSError as error:
            raise BrokenFile(f"{self.certificate} and {self.key}: cannot be read: {error.strerror}") from None
        if self.client_ca:
            try:
                context.load_verify_locations(cafile=self.client_ca)
            except ssl.SSLError as error:
                raise BrokenFile(f"{self.client_ca}: expected certificates in PEM ({error.reason or error})") from None
            except OSError as error:
                raise BrokenFile(f"{self.client_ca}: cannot be read: {error.strerror}") from None
        if [read_file(path) for path in self.all] != before:  # what was checked is not what was read
            raise BrokenFile("the files were changed while they were read")
        certificate, key, *client_ca = before
        return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca[0] if client_ca else None)


_OPTIONS = ("--tls-certificate", "--tls-key", "--tls-client-ca")  # of the paths


def _read(path: str, option: str) -> bytes:
    try:
        return read_file(path)
    except BrokenFile as error:
        raise BrokenFile(f"{option}: {error}") from None


_REASONS = {"KEY_VALUES_MISMATCH": "the key is not that of the certificate"}
_UNREADABLE = "expected a certificate and its key in PEM, the key without a password"


class Certificates:
    """The certificates in use. mutual: whether clients must show one of the given authorities'."""

    def __init__(self, first: grpc.ServerCertificateConfiguration, *, mutual: bool) -> None:
        self._first = first
        self._mutual = mutual
        self._next: collections.deque[grpc.ServerCertificateConfiguration] = collections.deque(maxlen=1)

    def use(self, configuration: grpc.ServerCertificateConfiguration) -> None:
        """Uses these for the connections that come from now on."""
        self._next.append(configuration)

    def credentials(self) -> grpc.ServerCredentials:
        """Returns what a gRPC port is opened with."""
        changed = self._changed  # typed as if it could not say that nothing has
        return grpc.dynamic_ssl_server_credentials(self._first, changed, self._mutual)  # type: ignore[arg-type]

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns other certificates than gRPC has, or None. gRPC calls it from its own threads."""
        try:
            return self._next.popleft()
        except IndexError:
            return None
