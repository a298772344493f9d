"""A group of live streams, a frame of each as fast as they are answered or in real time; and the echo of its bytes."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import grpc
import numpy as np
import seqloom

from benchmarks.harness.rounds import Result, Tally, delays
from benchmarks.loads.sequence_load import ANSWER, ECHO
from benchmarks.loads.workload import FRAME, RATE

LABEL = 4  # bytes
_MOMENTS = 50  # other frames than these are not sent
_PATIENCE = 5.0  # seconds that labels are waited for at the end

Exchange = Callable[[np.ndarray], Awaitable[None]]
"""Sends frames [n, 1, D], and waits for what answers them."""


def frames_of(chunks: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Returns what `count` streams say at some moments, each stream from another of the chunks [1, D] on: [n, 1, D]."""
    audio = np.stack(chunks)
    return [audio[(7 * np.arange(count) + moment) % len(audio)] for moment in range(_MOMENTS)]


@contextlib.asynccontextmanager
async def stepping(client: seqloom.AsyncClient, model: str, count: int) -> AsyncIterator[Exchange]:
    """Yields the exchange of an open group."""
    async with client.stream_group(model, count, outputs="labels") as group:

        async def exchange(frames: np.ndarray) -> None:
            chunk = await group.step(frames)
            assert chunk.outputs.shape == frames.shape[:2]

        yield exchange


@contextlib.asynccontextmanager
async def echoing(address: str, frames: Sequence[np.ndarray]) -> AsyncIterator[Exchange]:
    """Yields the exchange of as many bytes over a bare call, which were put together beforehand."""
    size = LABEL * len(frames[0])
    raw = {id(each): ANSWER.pack(size) + each.tobytes() for each in frames}
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.stream_stream(f"/{ECHO}/StreamInfer")()

        async def exchange(each: np.ndarray) -> None:
            await call.write(raw[id(each)])
            assert len(await call.read()) == size

        yield exchange
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK


async def closed_loop(exchange: Exchange, frames: Sequence[np.ndarray], seconds: float) -> Result:
    """One round: the next frames once the last are answered."""
    tally = Tally(seconds)
    for each in itertools.cycle(frames):
        sent = time.perf_counter()
        await exchange(each)
        tally.add(len(each), sent)
        if not tally.running:
            break
    return tally.result()


async def real_time(
    client: seqloom.AsyncClient, model: str, frames: Sequence[np.ndarray], count: int, seconds: float
) -> Result:
    """One round of a group of `count` that sends a frame of each stream whenever one has been spoken.

    Delays are from when the frames were due until their labels are there, one for each message. dropped: messages that
    were due and had no labels in the end.
    """
    every = FRAME / RATE
    ticks = max(2, round(seconds / every))
    from_due: list[float] = []
    async with client.stream_group(model, count, outputs="labels") as group:
        start = time.perf_counter() + every

        async def microphones() -> AsyncIterator[np.ndarray]:
            for tick, each in zip(range(ticks), itertools.cycle(frames), strict=False):
                await asyncio.sleep(start + tick * every - time.perf_counter())
                yield each

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ticks * every + _PATIENCE):
                async for chunk in group.run(microphones()):
                    assert chunk.outputs.shape == (count, 1)
                    from_due.append(time.perf_counter() - (start + len(from_due) * every))
        elapsed = time.perf_counter() - start
    rates = {"frames_per_second": len(from_due) * count / elapsed, "dropped": float(ticks - len(from_due))}
    return {"streams": float(count)} | rates | delays(from_due)
