"""Where the server may listen: on the loopback only, unless it has TLS and tokens or is told otherwise."""

import ipaddress
import socket

from seqloom_server.config import ServerConfig, split_address, unix_socket


class Exposed(Exception):
    """The server would listen where others can reach it, unprotected; the text is one line for the user."""


def check_listening(config: ServerConfig) -> None:
    """Raises Exposed, and OSError for a host that has no address."""
    missing = [] if config.tls_certificate else ["--tls-certificate", "--tls-key"]
    missing += [] if config.tokens else ["--tokens"]
    if config.allow_insecure or not missing:
        return
    for option in ("listen", "http"):
        address: str = getattr(config, option)
        if unix_socket(address) is None and not _is_loopback(split_address(address)[0].strip("[]")):
            raise Exposed(
                f"{option}: is {address}: expected an address of the loopback, such as 127.0.0.1, or also "
                f"{' and '.join(missing)}; --allow-insecure permits it without, on a network that you trust"
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)
