"""Live streams at the speed of speech that come one after the other, more of them than a server may bear.

A delay is from when a chunk was due to be sent until its outputs are there; of outputs that were not there at the end,
it is what they had waited by then, which is too little.
"""

import asyncio
import dataclasses
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import seqloom

from benchmarks.harness.rounds import Result
from benchmarks.loads.open_loop import quantiles
from benchmarks.loads.workload import FRAME, RATE

_PATIENCE = 0.5  # seconds that outputs are waited for at the end
_SPEECH = RATE // FRAME  # frames a second


class Group(NamedTuple):
    """count: streams. comes: seconds until the first. within: seconds in which all of them come. rated: whether they
    say their rate."""

    count: int
    comes: float
    within: float
    rated: bool


@dataclass
class Spoken:
    """One stream. opened, refused: seconds that this took; neither: it was still waiting, or failed. failed: why it
    ended too early. delays: of the chunks that count, seconds. behind: by how much they were sent late."""

    group: int
    opened: float | None = None
    refused: float | None = None
    failed: str = ""
    delays: list[float] = field(default_factory=list)
    behind: list[float] = field(default_factory=list)


async def offered(
    client: seqloom.AsyncClient,
    model: str,
    chunks: list[np.ndarray],
    groups: list[Group],
    counted: float,
    seconds: float,
) -> list[dict[str, Any]]:
    """Returns what became of every stream, as fields of Spoken, group by group in the order in which they came.

    counted: seconds from the beginning until chunks count. seconds: from there to the end.
    """
    every, start = len(chunks[0]) * FRAME / RATE, time.perf_counter() + 0.1
    counted, end = start + counted, start + counted + seconds

    async def speak(told: Spoken, comes: float, rated: bool, first: int) -> None:
        await asyncio.sleep(start + comes - time.perf_counter())
        asked, got = time.perf_counter(), 0
        try:
            async with client.stream(model, outputs="labels", rate=_SPEECH if rated else None) as stream:
                begin = time.perf_counter()
                told.opened = begin - asked

                async def microphone() -> AsyncIterator[np.ndarray]:
                    for k, frames in enumerate(
                        itertools.islice(itertools.cycle(chunks), 7 * first % len(chunks), None)
                    ):
                        due = begin + (k + 1) * every
                        if due >= end:
                            break
                        await asyncio.sleep(due - time.perf_counter())
                        told.behind.append(time.perf_counter() - due)
                        yield frames

                try:
                    async for _ in stream.run(microphone()):
                        got += 1
                        if begin + got * every >= counted:
                            told.delays.append(time.perf_counter() - (begin + got * every))
                finally:  # those that are still due
                    while (due := begin + (got := got + 1) * every) < min(end, time.perf_counter()):
                        if due >= counted:
                            told.delays.append(time.perf_counter() - due)
        except seqloom.SeqloomError as error:
            if isinstance(error, seqloom.Overloaded) and told.opened is None:
                told.refused = time.perf_counter() - asked
            else:
                told.failed = type(error).__name__

    streams = [Spoken(number) for number, group in enumerate(groups) for _ in range(group.count)]
    moments = [(each.comes + each.within * n / each.count, each.rated) for each in groups for n in range(each.count)]
    tasks = [asyncio.ensure_future(speak(told, *moments[n], n)) for n, told in enumerate(streams)]
    _, waiting = await asyncio.wait(tasks, timeout=end + _PATIENCE - time.perf_counter())
    for task in waiting:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return [dataclasses.asdict(told) for told in streams]


def summary(streams: list[Spoken], first: int) -> Result:
    """How many were opened, refused, and neither; delays of those opened, and of the `first` that came."""
    opened = [told for told in streams if told.opened is not None]
    refused = [told.refused for told in streams if told.refused is not None]
    counts = {"streams": len(streams), "opened": len(opened), "refused": len(refused)}
    counts["lost"] = len(streams) - len(opened) - len(refused) + sum(bool(told.failed) for told in opened)
    return (
        counts
        | quantiles([delay for told in opened for delay in told.delays])
        | quantiles([delay for told in streams[:first] for delay in told.delays], "first_", medians=False)
        | quantiles(refused, "refused_")
        | quantiles([behind for told in opened for behind in told.behind], "sent_late_", medians=False)
    )
