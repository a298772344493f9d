"""Callers that offer a server more than it can do, through the SDK, in a process of their own.

Started with an address and a network, asked [work, ...], it answers with what became of calls or streams:

    peak CALLERS SECONDS                  the rounds' numbers of a closed loop
    calls CONNECTIONS RATE SECONDS SEED   open_loop.Calls
    steady RATE SECONDS                   the same, evenly, with the patience of a flood's caller
    flood CALLERS SECONDS                 how many calls of so many callers were answered, refused and lost
    streams GROUPS COUNTED SECONDS        live_offer.Spoken of each stream
"""

import asyncio
import contextlib
import dataclasses
import gc
import itertools
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import seqloom

from benchmarks.harness.child_process import questions, say
from benchmarks.harness.rounds import Loop
from benchmarks.loads import live_offer, open_loop, sequence_load
from benchmarks.loads.overload_workload import recordings_of
from benchmarks.loads.workload import chunks, synthetic

CHUNK = 10  # frames
PATIENCE = 10.0  # seconds that a call of a flood, and one beside it, may take
_LEAST_PAUSE = 0.01  # seconds until a refused call of a flood comes again


class Callers:
    """What this program can be asked."""

    def __init__(self, address: str, model: str) -> None:
        self._address, self._model, self._recordings = address, model, recordings_of(model)
        self._chunks = chunks(synthetic(), CHUNK)

    async def peak(self, callers: int, seconds: float) -> Any:
        async with sequence_load.sdk_calls(self._address, self._model, callers, connections=1) as calls:
            await sequence_load.closed_loop(calls, self._recordings, seconds / 2)  # warms up, and the server learns
            return await sequence_load.closed_loop(calls, self._recordings, seconds)

    async def calls(self, connections: int, rate: float, seconds: float, seed: int) -> Any:
        async with self._connected(connections, open_loop.TIMEOUT) as calls:
            return dataclasses.asdict(await open_loop.offered(calls, self._recordings, rate, seconds, seed=seed))

    async def steady(self, rate: float, seconds: float) -> Any:
        async with self._connected(1, PATIENCE) as calls:
            return dataclasses.asdict(await open_loop.offered(calls, self._recordings, rate, seconds, even=True))

    async def flood(self, callers: int, seconds: float) -> Any:
        told, following = Counter[str](), itertools.cycle(self._recordings)
        async with seqloom.AsyncClient(self._address, retries=0) as client:

            async def caller() -> None:
                while True:
                    outcome, pause = await self._told(client, next(following), PATIENCE)
                    told[outcome] += 1
                    await asyncio.sleep(max(pause, _LEAST_PAUSE) if outcome == open_loop.REFUSED else 0)

            tasks = [asyncio.ensure_future(caller()) for _ in range(callers)]
            await asyncio.sleep(seconds)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return told

    async def streams(self, groups: list[list[Any]], counted: float, seconds: float) -> Any:
        async with seqloom.AsyncClient(self._address, retries=0) as client:
            come = [live_offer.Group(*group) for group in groups]
            return await live_offer.offered(client, self._model, self._chunks, come, counted, seconds)

    @contextlib.asynccontextmanager
    async def _connected(self, connections: int, timeout: float) -> AsyncIterator[list[open_loop.Call]]:
        """Yields a call for each of so many connections, which have all been used once."""
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(seqloom.AsyncClient(self._address, retries=0))
                for _ in range(connections)
            ]

            async def call(client: seqloom.AsyncClient, frames: np.ndarray) -> str:
                return (await self._told(client, frames, timeout))[0]

            for client in clients:
                await client.infer(self._model, self._recordings[:1], outputs="labels")
            yield [lambda frames, client=client: call(client, frames) for client in clients]

    async def _told(self, client: seqloom.AsyncClient, frames: np.ndarray, timeout: float) -> tuple[str, float]:
        """What became of a call, and how many seconds a refused one is to wait."""
        try:
            result = await client.infer(self._model, [frames], outputs="labels", timeout=timeout)
        except seqloom.Overloaded as error:
            return open_loop.REFUSED, error.retry_after
        except seqloom.DeadlineExceeded:
            return open_loop.LATE, 0.0
        except seqloom.SeqloomError as error:
            print(f"a call failed: {error!r}", file=sys.stderr)
            return open_loop.FAILED, 0.0
        assert len(result.outputs[0]) == len(frames)
        return open_loop.GOOD, 0.0


def main() -> None:
    callers = Callers(*sys.argv[1:])
    gc.collect()
    gc.freeze()  # what is there will stay, and need not be looked at while calls are timed
    say("ready")
    with Loop() as loop:
        for work, *arguments in questions():
            say(loop.run(getattr(callers, work)(*arguments)))


if __name__ == "__main__":
    main()
