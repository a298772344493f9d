"""Whom work is counted for where callers share the server: the token of the call, else its connection."""

from typing import Any

import grpc

from seqloom_server.engine.run_owner import ANYONE, RunOwner
from seqloom_server.rpc.calls.interceptors import token_use


def caller_of(context: "grpc.aio.ServicerContext[Any, Any]") -> str:
    """Returns the name of the current call's caller: its token, whatever the connection, or its connection.

    gRPC names all connections of a unix socket alike: those who use one share one part, as one caller does.
    """
    use = token_use()
    return str(context.peer()) if use is None else f"token:{use.token.name}"


def run_owner() -> RunOwner:
    """Returns whose runs the current call may use and create."""
    use = token_use()
    if use is None:
        return ANYONE
    return RunOwner(use.token.name, "admin" in use.token.scopes, use.token.max_runs)
