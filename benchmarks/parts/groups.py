"""The part of the benchmark with stream groups: beside bare gRPC and the network, beside single streams, in time."""

import functools
from collections.abc import Iterator

from benchmarks.harness.child_process import program
from benchmarks.harness.rounds import Result, interleaved
from benchmarks.harness.table_rows import Row
from benchmarks.loads import group_load, stream_load
from benchmarks.loads.workload import SMALL, TITLES
from benchmarks.setup.goals import ALONE, ECHO, GOALS, GROUP_P99_MS, ON_TIME, ONE_AFTER_OTHER, SINGLE
from benchmarks.setup.server_bench import ServerBench

WIDTHS = (64, 1000)
_SHORTER = 5  # times, rounds of the closed loop are, but for single streams, whose first chunks are slow
_LIVE, _QUICK = 60.0, 1.0  # seconds in real time; the most of a quick run


def groups(bench: ServerBench) -> Iterator[Row]:
    """Groups, a frame of each stream a message: as fast as they are answered, then at the speed of speech."""
    for width in WIDTHS:
        yield from _closed_loop(bench, width)
    yield _real_time(bench, WIDTHS[-1])


def _closed_loop(bench: ServerBench, width: int) -> Iterator[Row]:
    """A group's frames, beside those of the bare echo and of the network alone if each waited for the other, and beside
    those of as many single streams."""
    seconds, frames = bench.seconds / _SHORTER, group_load.frames_of(bench.chunks(1), width)
    alone = functools.partial(bench.ask, "baselines.network_alone", "streams", SMALL, width)
    with (
        program("baselines.grpc_echo") as echo,
        bench.loop.entered(group_load.stepping(bench.client, SMALL, width)) as stepping,
        bench.loop.entered(group_load.echoing(echo.greeting[0], frames)) as echoing,
        bench.loop.entered(stream_load.opened(bench.client, SMALL, width)) as single,
    ):

        def grouped(seconds: float = seconds) -> Result:
            return bench.watched(group_load.closed_loop(stepping, frames, seconds))

        def echoed(seconds: float = seconds) -> Result:
            return bench.loop.run(group_load.closed_loop(echoing, frames, seconds))

        def singly(seconds: float = bench.seconds) -> Result:
            return bench.watched(stream_load.answered(single, bench.chunks(1), seconds))

        for warm_up in (grouped, echoed, singly, alone):
            warm_up(seconds / 4)
        works = {"": grouped, ECHO: echoed, ALONE: functools.partial(alone, seconds), SINGLE: singly}
        rounds = interleaved(works, bench.rounds)
    both = [
        {"frames_per_second": 1 / sum(1 / each["frames_per_second"] for each in pair)}
        for pair in zip(rounds[ECHO], rounds[ALONE], strict=True)
    ]
    work, network, number = f"a group of {width:,} streams, a frame a message", TITLES[SMALL], "frames_per_second"
    goal = GOALS["groups", SMALL, ONE_AFTER_OTHER]
    yield Row.of(f"{work}, closed loop", network, rounds[""]).against(both, number, ONE_AFTER_OTHER, goal)
    yield Row.of(f"{work}, beside single streams", network, rounds[""]).against(rounds[SINGLE], number, SINGLE)
    yield Row.of(f"{width:,} single streams, chunks of 1 frame, closed loop", network, rounds[SINGLE])
    yield Row.of(f"a bare grpc.aio stream echo of the same bytes, {width:,} frames", network, rounds[ECHO])
    yield Row.of(f"{ALONE}, a frame of {width:,} streams after the other", network, rounds[ALONE])


def _real_time(bench: ServerBench, width: int) -> Row:
    """A group at the speed of speech: its slow delays beside the promise, and what had no labels in the end."""
    seconds = min(bench.seconds, _QUICK) if bench.quick else _LIVE
    frames = group_load.frames_of(bench.chunks(1), width)
    bench.loop.run(group_load.real_time(bench.client, SMALL, frames, width, seconds / 20))  # warm up
    result = bench.watched(group_load.real_time(bench.client, SMALL, frames, width, seconds))
    title = f"a group of {width:,} streams in real time, a frame every 10 ms"
    share, note = result["p99_ms"] / GROUP_P99_MS, f"{seconds:g} s, once"
    if result["dropped"]:
        note += f"; {result['dropped']:.0f} messages were dropped, and none may be"
    goal = GOALS["groups", SMALL, ON_TIME]
    return Row.of(title, TITLES[SMALL], [result], share, ON_TIME, goal, lower_is_better=True, note=note)
