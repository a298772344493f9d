"""The pauses that wrong tokens cost their peer addresses: each twice as long as the one before, and soon forgotten.

The table is bounded: an address that is not in it pauses for nothing. Nothing here reads a clock.
"""

import collections
import ipaddress
import urllib.parse
from dataclasses import dataclass

FIRST_SECONDS = 0.1
LONGEST_SECONDS = 30.0
FORGOTTEN_SECONDS = 600.0  # after the last wrong one

_MAX_ADDRESSES = 4096
_IPV6_PREFIX = 64  # what one site has: it could use another address for each guess
_MAX_DOUBLINGS = 20


@dataclass(slots=True)
class _Wrong:
    count: int
    last: float
    until: float


class WrongTokens:
    """The addresses that sent wrong tokens lately. Times are by one clock, in seconds."""

    def __init__(self) -> None:
        self._addresses: collections.OrderedDict[str, _Wrong] = collections.OrderedDict()  # the latest wrong one last

    def __len__(self) -> int:
        return len(self._addresses)

    def wait(self, address: str, now: float) -> float:
        """Returns the seconds until a token of this address is looked at."""
        found = self._addresses.get(address)
        return 0.0 if found is None else max(0.0, found.until - now)

    def add(self, address: str, now: float) -> None:
        """Counts a wrong token."""
        found = self._addresses.pop(address, None)
        count = 0 if found is None or now - found.last > FORGOTTEN_SECONDS else found.count
        pause = min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** min(count, _MAX_DOUBLINGS))
        self._addresses[address] = _Wrong(count + 1, now, now + pause)
        if len(self._addresses) > _MAX_ADDRESSES:
            self._addresses.popitem(last=False)


def address_of(peer: str) -> str:
    """Returns the address in gRPC's name of a peer, without the port; of an IPv6 address the site's part."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind  # of a unix socket
    host = urllib.parse.unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))
