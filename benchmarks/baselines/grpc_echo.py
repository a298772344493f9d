"""A bare grpc.aio server that answers messages with as many of their bytes as their head says: what gRPC alone costs.

It says its address and the number of its process, and serves until its input ends.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

from benchmarks.harness.child_process import say
from benchmarks.loads.sequence_load import ANSWER, ECHO


async def _echo(request: bytes, _: Any) -> bytes:
    (size,) = ANSWER.unpack_from(request)
    return request[:size]


async def _echo_each(requests: AsyncIterator[bytes], context: Any) -> None:
    async for request in requests:
        await context.write(await _echo(request, context))


async def main() -> None:
    server = grpc.aio.server()
    handlers = {
        "Infer": grpc.unary_unary_rpc_method_handler(_echo),
        "StreamInfer": grpc.stream_stream_rpc_method_handler(_echo_each),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(ECHO, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    say([f"127.0.0.1:{port}", os.getpid()])
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(main())
