"""Which process may use gRPC: none that was forked from one that did, where its threads and connections are dead.

Calls would hang there past their timeouts, or end the process.
"""

import os

from seqloom.errors import InvalidArgument

_begun = False
_outlived = False


def begin() -> None:
    """Says that this process uses gRPC from now on. Raises InvalidArgument where it may not."""
    global _begun
    check()
    _begun = True


def check() -> None:
    """Raises InvalidArgument in a fork of a process that used gRPC."""
    if _outlived:
        raise refusal()


def outlived() -> bool:
    """Whether this is such a fork: what was open is open in its parent, and there is nothing to end here."""
    return _outlived


def refusal() -> InvalidArgument:
    """What check() raises."""
    return InvalidArgument(
        "gRPC does not outlive a fork, and this process is one of a process that had a client: "
        "start processes by spawn, or fork them before the first client",
        reason="FORKED",
    )


def _in_child() -> None:
    global _outlived
    _outlived = _begun


if hasattr(os, "register_at_fork"):  # where processes can be forked
    os.register_at_fork(after_in_child=_in_child)
