"""Whom work is counted for where callers share the server: the connection that it came by."""

from typing import Any

import grpc


def caller_of(context: "grpc.aio.ServicerContext[Any, Any]") -> str:
    """Returns the name of a call's caller, its connection.

    gRPC names all connections of a unix socket alike: those who use one share one part, as one caller does.
    """
    return str(context.peer())
