"""A bare grpc.aio server that answers with as many of a request's bytes as its head says: what gRPC alone costs.

A program of bench_server.py: it says its address, and serves until its input ends.
"""

import asyncio
import sys
from typing import Any

import grpc

from benchmarks.harness.child_process import say
from benchmarks.loads.sequence_load import ANSWER, ECHO


async def _echo(request: bytes, _: Any) -> bytes:
    (size,) = ANSWER.unpack_from(request)
    return request[:size]


async def main() -> None:
    server = grpc.aio.server()
    _, service, method = ECHO.split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(_echo)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    say(f"127.0.0.1:{port}")
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(main())
