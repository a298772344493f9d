"""What the sweeps have in common: their axes, what one point of them is, and how it is measured."""

import argparse
import functools
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from benchmarks.harness.child_process import Program
from benchmarks.harness.rounds import Result, median, observed, ratio
from benchmarks.harness.table_rows import Row
from benchmarks.loads import workload
from benchmarks.setup.server_setup import Sitting

AXES: dict[str, tuple[list[int], list[int], str]] = {
    "callers": ([1, 2, 4, 8, 16, 32, 64, 128, 256], [1, 16, 256], "callers of whole recordings"),
    "streams": ([1, 10, 100, 300, 1000], [1, 100], "live streams"),
    "chunks": ([1, 2, 5, 10, 20], [1, 10], "frames of a chunk"),
    "lengths": ([10, 100, 1000, 10_000], [10, 1000], "steps of a sequence"),
    "widths": ([64, 128, 256, 512, 1024, 2048], [64, 512], "hidden units"),
    "idle": ([2000], [200], "live streams with nothing to do"),
}
"""Each axis: its values, those of a quick run, and what they are."""


def add_axes(parser: argparse.ArgumentParser) -> None:
    """An option for each axis."""
    for name, (values, _, told) in AXES.items():
        parser.add_argument(
            f"--{name}", nargs="+", type=int, metavar="N", help=f"{told} ({' '.join(map(str, values))})"
        )


def axes(options: argparse.Namespace) -> dict[str, list[int]]:
    """The values of each axis, as the options have them, smallest first."""
    return {name: sorted(getattr(options, name) or AXES[name][options.quick]) for name in AXES}


@dataclass
class Point(Row):
    """A row of a sweep. who: whose numbers they are, such as "served" or "alone". at: where on which axes it stands."""

    sweep: str = ""
    who: str = "served"
    at: dict[str, float] | None = None


def point(sweep: str, who: str, at: dict[str, float], work: str, model: str, rounds: list[Result]) -> Point:
    """Its values are the medians of the rounds. model: the network's title."""
    return Point(work=work, model=model, values=median(rounds), rounds=rounds, sweep=sweep, who=who, at=at)


def beside(one: Point, other: Point, number: str, told: str) -> Point:
    """Gives one point the ratio of a number of its rounds to that of another's, which stands beside it as `told`."""
    one.ratio, one.beside = ratio(one.rounds, other.rounds, number), told
    one.lower_is_better = number != "frames_per_second"
    return one


@dataclass(eq=False)
class SweepBench:
    """What the sweeps need. alone: the program alone.py. axes: the values of each. seconds: of one round.

    flags: options of servers of a part's own.
    """

    held: Sitting
    alone: Program
    recordings: list[np.ndarray]
    axes: dict[str, list[int]]
    rounds: int
    seconds: float
    flags: tuple[str, ...] = ()

    def watched(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs one round and adds what a frame cost: on the clock, on the device, of the server's processor time."""
        with observed(self.held.server, extra := {}):
            before, begun = self._processor_seconds(), time.perf_counter()
            result = self.held.loop.run(work)
            cores = (self._processor_seconds() - before) / (time.perf_counter() - begun)
        us_a_frame = 1e6 / result["frames_per_second"]
        extra["device_busy_share"] = extra["device_us_a_frame"] / us_a_frame  # without what stood around the work
        return result | extra | {"us_a_frame": us_a_frame, "server_us_a_frame": cores * us_a_frame}

    @functools.cache  # noqa: B019  there is one, for as long as the program runs
    def chunks(self, size: int) -> list[np.ndarray]:
        """The recordings as chunks [size, 160] of a live stream."""
        return workload.chunks(self.recordings, size)

    @functools.cached_property
    def _process(self) -> psutil.Process:
        return psutil.Process(self.held.server.pid)

    def _processor_seconds(self) -> float:
        taken = self._process.cpu_times()
        return taken.user + taken.system
