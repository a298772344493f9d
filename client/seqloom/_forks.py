"""Refuses gRPC in a process that was forked after its parent used gRPC, as threads and connections are dead there.

Without this, calls would ignore their timeouts, or end the process.
"""

import os

from seqloom.errors import InvalidArgument

_grpc_used = False
_forked = False


def mark_grpc_used() -> None:
    """Records that this process uses gRPC. Raises InvalidArgument in a fork of a process that used gRPC."""
    global _grpc_used
    check_not_forked()
    _grpc_used = True


def check_not_forked() -> None:
    """Raises InvalidArgument in a fork of a process that used gRPC."""
    if _forked:
        raise InvalidArgument(
            "gRPC does not work in a process that was forked after its parent created a client: "
            "start processes with the spawn method, or fork them before the first client",
            reason="FORKED",
        )


def is_forked() -> bool:
    """Whether this process is a fork of one that used gRPC. Calls and streams are open in the parent, not here."""
    return _forked


def _in_child() -> None:
    global _forked
    _forked = _grpc_used


if hasattr(os, "register_at_fork"):  # on systems that can fork
    os.register_at_fork(after_in_child=_in_child)
