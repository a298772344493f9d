"""How one round is measured, and what is made of several: rates, latencies, medians, ratios."""

import asyncio
import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

Result = dict[str, float]
"""Numbers of one round by name, such as frames_per_second."""

Name = TypeVar("Name")
Taken = TypeVar("Taken")


@dataclass
class Tally:
    """What the callers of one round have done. latencies: seconds, one for each answer."""

    seconds: float
    frames: int = 0
    latencies: list[float] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)

    @property
    def running(self) -> bool:
        """Whether new work is to be begun."""
        return time.perf_counter() - self.start < self.seconds

    def add(self, frames: int, sent: float) -> None:
        """Counts an answer to what was sent at this time.perf_counter()."""
        self.latencies.append(time.perf_counter() - sent)
        self.frames += frames

    def result(self) -> Result:
        """Called when the last answer has come."""
        seconds = time.perf_counter() - self.start
        rates = {"frames_per_second": self.frames / seconds, "answers_per_second": len(self.latencies) / seconds}
        return rates | delays(self.latencies)


def delays(latencies: list[float]) -> Result:
    """The median, the 99th percentile and the largest of latencies in seconds, in milliseconds."""
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    return {"p50_ms": float(p50), "p99_ms": float(p99), "max_ms": max(latencies) * 1e3}


def interleaved(measurings: Mapping[Name, Callable[[], Taken]], rounds: int) -> dict[Name, list[Taken]]:
    """Runs the measurings in turn, `rounds` times over, so that a busy minute of the machine meets all of them."""
    results: dict[Name, list[Taken]] = {name: [] for name in measurings}
    for _ in range(rounds):
        for name, measure in measurings.items():
            results[name].append(measure())
    return results


def median(results: list[Result]) -> Result:
    """The median of each number over the rounds."""
    return {name: statistics.median(result[name] for result in results) for name in results[0]}


def ratio(results: list[Result], others: list[Result], name: str) -> float:
    """The median over rounds of one number divided by the same of another measuring's round."""
    return statistics.median(one[name] / other[name] for one, other in zip(results, others, strict=True))


class Loop(asyncio.Runner):
    """The one event loop of this process, since grpc.aio serves only one well; coroutines run on it turn by turn."""

    @contextlib.contextmanager
    def entered(self, manager: contextlib.AbstractAsyncContextManager):
        """An asynchronous context, entered and left from outside of the loop."""
        value = self.run(manager.__aenter__())
        try:
            yield value
        finally:
            self.run(manager.__aexit__(None, None, None))
