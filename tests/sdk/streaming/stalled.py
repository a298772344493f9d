"""The program of test_stream_budget.py: many streams that send and never receive, and one that goes on; tells in JSON.

What the client holds is counted in its chunks, and read off the process: so it runs in one of its own.
"""

import asyncio
import ctypes
import gc
import json
import sys

import numpy as np
import psutil
import seqloom

STEPS = 4  # of a chunk


async def stall(stream: seqloom.AsyncStream) -> None:
    while True:
        await stream.send(np.zeros((STEPS, 2), "f4"), timeout=1e6)


def held(stream: seqloom.AsyncStream) -> int:
    """The bytes of outputs that it has in memory, with what they keep there."""
    return sum(chunk.outputs.nbytes for chunk, *_ in stream._session._chunks._ready)


def waits(stream: seqloom.AsyncStream) -> bool:
    """Whether all that it sent has been answered, and it cannot send more."""
    return bool(stream._session._waiting) and not stream._session._chunks.missing


def resident() -> int:
    """The bytes that this process keeps in memory, without what its allocator could give back at once."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss


async def main(address: str, model: str, count: int) -> None:
    async with seqloom.AsyncClient(address, timeout=300) as client:
        streams = [client.stream(model) for _ in range(count)]
        for stream in streams:
            await stream.__aenter__()
        before = resident()
        stalling = [asyncio.create_task(stall(stream)) for stream in streams]
        while not all(waits(stream) for stream in streams):  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.05)
        told = {"held": sum(map(held, streams)), "grown": resident() - before}
        async with client.stream(model) as other:
            for _ in range(30):
                await other.send(np.zeros((STEPS, 2), "f4"))
                assert len(await other.receive()) == STEPS
            told["went_on"] = 30
        for task in stalling:
            task.cancel()
        await asyncio.gather(*stalling, return_exceptions=True)
        for stream in streams:
            await stream.__aexit__(None, None, None)
        budget = client._connection.channel().shared._budget
        told["kept"] = budget.size - budget.free
    print(json.dumps(told))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
