"""The settings of a client and the gRPC channel options that follow from them."""

import ipaddress
import math
import os
import re
import time
from dataclasses import dataclass, field

import grpc

from seqloom._retries import INITIAL_BACKOFF, MAX_BACKOFF, checked_seconds
from seqloom._version import __version__
from seqloom.errors import InvalidArgument
from seqloom.types import TLS

MESSAGE_BYTES = 1 << 20  # the largest message of the shared call, and of a part of a model
MAX_RECEIVE_BYTES = 16 << 20  # an entry has at least one row, and a row up to a million classes
MAX_SEND_BYTES = 4 << 20  # the server's limit, gRPC's default

_HOST_PORT = re.compile(r"([A-Za-z0-9._-]+|\[[^\s\[\]]+\]):([0-9]{1,5})")
# gRPC's target schemes (its doc/naming.md); it takes any other scheme for the beginning of a host name
_TARGET = re.compile(r"(?:(dns|ipv4|ipv6)|unix|unix-abstract|vsock|xds):(/*[^\s/]\S*)", re.IGNORECASE)
_TARGETS_PORT = re.compile(r":([0-9]+)(?=,|$)")
_MAX_PORT = 65535  # gRPC uses larger ports modulo 65536

_MIN_KEEPALIVE, _MAX_KEEPALIVE = 10.0, 86_400.0  # seconds; servers close connections that ping more often
_CONNECT_TIMEOUT = 5.0  # seconds for one try, at least: a few round trips of a slow link, and a packet that is lost
_KEEPALIVE_TIMEOUT = 10.0  # seconds to wait for the answer to a ping


@dataclass(frozen=True, slots=True)
class Config:
    """The checked settings of a client; see AsyncClient."""

    address: str
    token: str | None = field(repr=False)
    tls: TLS | None
    timeout: float
    retries: int | None
    keepalive: float

    def __post_init__(self) -> None:
        if not isinstance(self.address, str) or not _is_address(self.address):
            raise InvalidArgument(
                f"address: is {self.address!r}: expected 'host:port', with an IPv6 host in brackets and a port from 1 "
                "to 65535, or a gRPC target such as 'unix:/run/seqloom.sock'; for TLS pass tls=seqloom.TLS()"
            )
        if self.token is not None and not (
            isinstance(self.token, str) and self.token.isascii() and self.token.isprintable()
        ):
            raise InvalidArgument("token: expected a string of printable ASCII characters")
        if self.tls is not None and not isinstance(self.tls, TLS):
            raise InvalidArgument(f"tls: is a {type(self.tls).__name__}: expected seqloom.TLS")
        if self.token and self.tls is None and not _stays_here(self.address):
            raise InvalidArgument(
                f"token: would be sent unencrypted to {self.address}: pass tls=seqloom.TLS(), or use an address of "
                "this machine"
            )
        for name in ("timeout", "keepalive"):
            checked_seconds(getattr(self, name), name)
        if not _MIN_KEEPALIVE <= self.keepalive <= _MAX_KEEPALIVE and self.keepalive != math.inf:
            raise InvalidArgument(
                f"keepalive: is {self.keepalive}: expected seconds from {_MIN_KEEPALIVE:.0f} to {_MAX_KEEPALIVE:.0f}, "
                "or math.inf for no checks"
            )
        if self.retries is not None and (
            isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 0
        ):
            raise InvalidArgument(f"retries: is {self.retries!r}: expected an integer of at least 0, or None")

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns the metadata of every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Returns the TLS credentials. Raises InvalidArgument if a file of `tls` cannot be read."""
        if self.tls is None:
            return None
        parts = (self.tls.ca, self.tls.key, self.tls.certificate)
        return grpc.ssl_channel_credentials(*(_pem(part) for part in parts))

    def channel_options(self) -> list[tuple[str, str | int]]:
        """Returns the options of the gRPC channel."""
        options: list[tuple[str, str | int]] = [
            ("grpc.primary_user_agent", f"seqloom-python/{__version__}"),
            ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
            ("grpc.max_send_message_length", MAX_SEND_BYTES),
            ("grpc.use_local_subchannel_pool", 1),  # each client has its own connection
            ("grpc.initial_reconnect_backoff_ms", int(INITIAL_BACKOFF * 1e3)),
            ("grpc.min_reconnect_backoff_ms", int(_CONNECT_TIMEOUT * 1e3)),  # which is what gRPC means by it
            ("grpc.max_reconnect_backoff_ms", int(MAX_BACKOFF * 1e3)),
        ]
        if math.isfinite(self.keepalive):
            options += [
                ("grpc.keepalive_time_ms", int(self.keepalive * 1e3)),
                # of unacknowledged bytes, by TCP_USER_TIMEOUT: gRPC itself ignores it
                ("grpc.keepalive_timeout_ms", int(_KEEPALIVE_TIMEOUT * 1e3)),
                # of a ping's answer, also where a proxy acknowledges the bytes; by default a minute
                ("grpc.http2.ping_timeout_ms", int(_KEEPALIVE_TIMEOUT * 1e3)),
                ("grpc.http2.max_pings_without_data", 0),
            ]
        if self.tls is not None and self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        if self.token and self.tls is None:
            options.append(("grpc.enable_http_proxy", 0))  # which would read the token, and is on another machine
        return options

    def deadline(self, timeout: float | None) -> float:
        """Returns the deadline of a call that starts now, on time.monotonic's clock. timeout: None for the client's."""
        seconds = self.timeout if timeout is None else checked_seconds(timeout, "timeout")
        return time.monotonic() + seconds


def _is_address(address: str) -> bool:
    target = _TARGET.fullmatch(address)
    if target is not None:
        ports = _TARGETS_PORT.findall(target[2]) if target[1] else []
        return all(int(port) <= _MAX_PORT for port in ports)
    found = _HOST_PORT.fullmatch(address)
    if found is None or not 1 <= int(found[2]) <= _MAX_PORT:
        return False
    if not found[1].startswith("["):
        return True
    try:
        ipaddress.IPv6Address(found[1][1:-1])
    except ValueError:
        return False
    return True


def _stays_here(address: str) -> bool:
    """Returns whether all that is sent to an address stays on this machine: to its loopback, or to a unix socket."""
    target = _TARGET.fullmatch(address)
    if target is None:
        return _is_loopback(address)
    scheme = address.partition(":")[0].lower()
    if scheme in ("unix", "unix-abstract"):
        return True
    path = target[2].removeprefix("///")  # else it begins with // and the DNS server that is to be asked
    return scheme in ("dns", "ipv4", "ipv6") and all(map(_is_loopback, path.split(",")))


def _is_loopback(address: str) -> bool:
    """Returns whether "HOST:PORT" or "HOST" is of the loopback. Of names only localhost is known to be."""
    host = found[1] if (found := _HOST_PORT.fullmatch(address)) else address
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def _pem(part: bytes | str | None) -> bytes | None:
    if part is None or isinstance(part, bytes):
        return part
    try:
        with open(os.fspath(part), "rb") as file:
            return file.read()
    except OSError as error:
        raise InvalidArgument(f"tls: {part}: {error.strerror}") from None
