"""Callers of whole recordings, each of which sends the next when the last is answered; and their bare gRPC echo."""

import asyncio
import contextlib
import itertools
import struct
import time
from collections.abc import Awaitable, Callable

import grpc
import numpy as np
import seqloom

from benchmarks.harness.rounds import Result, Tally

Call = Callable[[np.ndarray], Awaitable[None]]

ECHO = "benchmark.Echo"
ANSWER = struct.Struct("<I")
"""Stands before an echo's request: how many of its bytes to answer with."""


async def closed_loop(calls: list[Call], recordings: list[np.ndarray], seconds: float) -> Result:
    """One round: a caller for each of `calls`, all of them taking from the same recordings, round and round."""
    tally, following = Tally(seconds), itertools.cycle(recordings)

    async def caller(call: Call) -> None:
        while tally.running:
            frames, sent = next(following), time.perf_counter()
            await call(frames)
            tally.add(len(frames), sent)

    await asyncio.gather(*map(caller, calls))
    return tally.result()


@contextlib.asynccontextmanager
async def sdk_calls(address: str, model: str, count: int, *, connections: int):
    """Yields `count` callers that share that many clients, each a connection of its own."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(seqloom.AsyncClient(address)) for _ in range(connections)]

        async def call(client: seqloom.AsyncClient, frames: np.ndarray) -> None:
            result = await client.infer(model, [frames], outputs="labels")
            assert len(result.outputs[0]) == len(frames)

        yield [_bound(call, client) for client in itertools.islice(itertools.cycle(clients), count)]


@contextlib.asynccontextmanager
async def echo_calls(address: str, answer_bytes: Callable[[int], int], count: int):
    """Yields `count` callers with a connection each; answer_bytes: how large the answer to so many frames is."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options)) for _ in range(count)
        ]

        async def call(method: grpc.aio.UnaryUnaryMultiCallable, frames: np.ndarray) -> None:
            size = answer_bytes(len(frames))
            assert len(await method(ANSWER.pack(size) + frames.tobytes())) == size

        yield [_bound(call, channel.unary_unary(f"/{ECHO}/Infer")) for channel in channels]


def _bound(call: Callable[..., Awaitable[None]], through: object) -> Call:
    return lambda frames: call(through, frames)


def answer_bytes_of(hidden_size: int) -> Callable[[int], int]:
    """How many bytes labels and final state take: 4 a frame, 4 a hidden unit."""
    return lambda frames: 4 * frames + 4 * hidden_size
