"""Bounds the calls that are open at once, over all connections, and each address's part of them.

A call that says nothing costs memory too: some 30 KB, so that a thousand of each of many connections would be too much.
"""

from typing import Any

import grpc

from seqloom_server.engine.admission.caller_share import SharedBound
from seqloom_server.engine.core.overload import ONE_SECOND, overloaded
from seqloom_server.errors import Overload


class OpenCalls:
    """The open calls of a server. limit: calls at once; one address has at most nine times what is free."""

    def __init__(self, limit: int) -> None:
        self._bound = SharedBound(limit)

    def take(self, context: "grpc.aio.ServicerContext[Any, Any]") -> str:
        """Counts a call; returns the address that it is counted for. Raises OVERLOADED."""
        address = str(context.peer()).rpartition(":")[0]  # without the port: all connections of one address
        if not self._bound.admits(address):
            raise overloaded(
                f"call limit reached: {self._bound.used:.0f} calls are open, {self._bound.held(address):.0f} of them "
                "from your address",
                ONE_SECOND,
                Overload.CALLS,
            )
        self._bound.count(address)
        return address

    def give(self, address: str) -> None:
        """Ends a call that was counted for an address."""
        self._bound.count(address, -1)
