"""Live streams: as fast as they are answered, and at the speed of speech."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import seqloom

from benchmarks.harness.rounds import Result, Tally, delays
from benchmarks.loads.workload import FRAME, RATE

_SPREAD = 97  # streams begin at so many moments of a chunk, one after the other: as many as fit a batch come together


async def closed_loop(
    client: seqloom.AsyncClient, model: str, chunks: list[np.ndarray], count: int, seconds: float
) -> Result:
    """One round of `count` streams that are opened for it, each as in `answered`."""
    async with opened(client, model, count) as streams:
        return await answered(streams, chunks, seconds)


@contextlib.asynccontextmanager
async def opened(client: seqloom.AsyncClient, model: str, count: int) -> AsyncIterator[list[seqloom.AsyncStream]]:
    """Yields that many open streams, which have sent nothing yet."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(client.stream(model, outputs="labels")) for _ in range(count)]


async def answered(streams: list[seqloom.AsyncStream], chunks: list[np.ndarray], seconds: float) -> Result:
    """One round of open streams, each with its next chunk when it has the outputs of the last, one at least."""
    tally = Tally(seconds)

    async def speak(stream: seqloom.AsyncStream, first: int) -> None:
        for frames in _from(chunks, first):
            sent = time.perf_counter()
            await stream.send(frames)
            assert len(await stream.receive()) == len(frames)
            tally.add(len(frames), sent)
            if not tally.running:
                break

    await asyncio.gather(*map(speak, streams, itertools.count()))
    return tally.result()


async def real_time(
    client: seqloom.AsyncClient,
    model: str,
    chunks: list[np.ndarray],
    count: int,
    seconds: float,
    beside: Callable[[], Awaitable[Result]] | None = None,
) -> Result:
    """One round of `count` streams that each have a chunk when it has been spoken; fewer streams than _SPREAD
    begin in the first part of a chunk, which suits a server that batches.

    Latencies are from when a chunk was due, so that a sender that falls behind is not flattered; those named sent_
    are from when it was sent. beside: what goes on meanwhile; it begins when all streams are open, they speak until it
    has ended, and its numbers are named beside_.
    """
    every = len(chunks[0]) * FRAME / RATE  # seconds
    spoken = max(2, round(seconds / every))
    from_due: list[float] = []
    from_sent: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(client.stream(model, outputs="labels")) for _ in range(count)]
        start = time.perf_counter() + every
        other = None if beside is None else asyncio.ensure_future(beside())

        async def speak(stream: seqloom.AsyncStream, number: int) -> None:
            begin = start + every * (number % _SPREAD) / _SPREAD
            sent: list[float] = []

            async def microphone() -> AsyncIterator[np.ndarray]:
                for k, frames in enumerate(_from(chunks, number)):
                    if k >= spoken and (other is None or other.done()):
                        break
                    await asyncio.sleep(begin + k * every - time.perf_counter())
                    sent.append(time.perf_counter())
                    yield frames

            got = 0
            async for chunk in stream.run(microphone()):
                assert len(chunk) == len(chunks[0])
                now = time.perf_counter()
                from_due.append(now - (begin + got * every))
                from_sent.append(now - sent[got])
                got += 1

        await asyncio.gather(*map(speak, streams, itertools.count()))
        elapsed = time.perf_counter() - start
    rate = {"frames_per_second": len(from_due) * len(chunks[0]) / elapsed}
    if other is not None:
        rate |= {f"beside_{name}": value for name, value in (await other).items()}
    return rate | delays(from_due) | {f"sent_{name}": value for name, value in delays(from_sent).items()}


def _from(chunks: list[np.ndarray], first: int) -> itertools.islice:
    """The chunks round and round, each stream from another."""
    return itertools.islice(itertools.cycle(chunks), 7 * first % len(chunks), None)
