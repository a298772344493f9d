"""Calls that do not wait for each other: sent at a rate, at random moments, whatever became of those before.

How late the sender itself was is told of every call, since one that cannot keep up offers less than it says.
"""

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from benchmarks.harness.rounds import Result

TIMEOUT = 1.0  # seconds that a call may take; what is answered within them is good
UNCOUNTED = 1.0  # seconds at the beginning, until the queue is what it will be

GOOD, REFUSED, LATE, FAILED = "good", "refused", "late", "failed"
"""What becomes of a call. late: it had no answer within its timeout. failed: by an error of another kind."""

Call = Callable[[np.ndarray], Awaitable[str]]
"""Sends frames [T, D]; returns what became of it."""


@dataclass
class Calls:
    """What became of calls, an item for each in the order in which they ended.

    sent: seconds since the first could be sent. behind: seconds from when it was due. told: its end. took: seconds
    until then. steps: of its recording.
    """

    sent: list[float] = field(default_factory=list)
    behind: list[float] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def add(self, *call: object) -> None:
        """call: an item for each list, in their order."""
        for column, value in zip(self.columns(), call, strict=True):
            column.append(value)

    def columns(self) -> list[list]:
        return [getattr(self, each.name) for each in dataclasses.fields(self)]

    @classmethod
    def joined(cls, parts: Sequence[dict[str, list]]) -> Self:
        """Those of several senders that began together; each as dataclasses.asdict has it."""
        return cls(
            **{each.name: [*itertools.chain(*(part[each.name] for part in parts))] for each in dataclasses.fields(cls)}
        )


async def offered(
    calls: Sequence[Call],
    recordings: list[np.ndarray],
    rate: float,
    seconds: float,
    *,
    seed: int = 0,
    even: bool = False,
) -> Calls:
    """Sends `rate` calls a second for UNCOUNTED and `seconds` more, and waits until all have ended.

    calls: taken in turn, such as one for each connection. even: at even moments, not at random ones.
    A sender that is too slow stops in time, and has offered less.
    """
    gone = Calls()
    following, through = itertools.cycle(recordings), itertools.cycle(calls)
    waiting: set[asyncio.Task[None]] = set()
    start, end = time.perf_counter(), UNCOUNTED + seconds

    async def send(call: Call, frames: np.ndarray, sent: float, behind: float) -> None:
        told = await call(frames)
        gone.add(sent, behind, told, time.perf_counter() - start - sent, len(frames))

    for due in np.arange(0, end, 1 / rate) if even else moments(rate, seconds, seed):
        await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
        sent = time.perf_counter() - start
        if sent > end:
            break
        task = asyncio.ensure_future(send(next(through), next(following), sent, float(sent - due)))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    await asyncio.gather(*waiting)
    return gone


def moments(rate: float, seconds: float, seed: int) -> np.ndarray:
    """When to send, in seconds: as of a Poisson process which has just `rate` calls a second, in the beginning as
    in the seconds that count, so that chance does not decide how much is offered."""
    random = np.random.default_rng(seed)
    before = random.uniform(0, UNCOUNTED, round(rate * UNCOUNTED))
    counted = random.uniform(UNCOUNTED, UNCOUNTED + seconds, round(rate * seconds))
    return np.sort(np.concatenate([before, counted]))


def summary(calls: Calls, seconds: float) -> Result:
    """The numbers of the calls that were sent in the `seconds` that count: rates; delays of the good and of the
    refused, where there are any; by how much the sender was late (the 99th percentile)."""
    counted = [call for call in zip(*calls.columns(), strict=True) if UNCOUNTED <= call[0] < UNCOUNTED + seconds]
    good = [took for _, _, told, took, _ in counted if told == GOOD and took <= TIMEOUT]
    refused = [took for _, _, told, took, _ in counted if told == REFUSED]
    rates = {
        "offered_per_second": len(counted) / seconds,
        "good_per_second": len(good) / seconds,
        "refused_per_second": len(refused) / seconds,
        "lost_per_second": (len(counted) - len(good) - len(refused)) / seconds,
        "good_of_offered": len(good) / max(len(counted), 1),
    }
    behind = [call[1] for call in counted]
    return rates | quantiles(good) | quantiles(refused, "refused_") | quantiles(behind, "sent_late_", medians=False)


def quantiles(seconds: Sequence[float], prefix: str = "", *, medians: bool = True) -> Result:
    """The median and the 99th percentile, in milliseconds; nothing of nothing."""
    if not len(seconds):
        return {}
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return ({f"{prefix}p50_ms": float(p50)} if medians else {}) | {f"{prefix}p99_ms": float(p99)}


def wasted(computed: float, calls: Calls) -> float:
    """The share of the steps computed that were for answers which nobody got."""
    got = sum(steps for told, steps in zip(calls.told, calls.steps, strict=True) if told == GOOD)
    return max(0.0, 1 - got / computed) if computed else 0.0
