"""The parts of the benchmark with live streams: as fast as they are answered, and at the speed of speech."""

import functools
from collections.abc import Iterator

from benchmarks.harness.capacity_search import ON_TIME, Search
from benchmarks.harness.rounds import Result
from benchmarks.harness.table_rows import Row
from benchmarks.loads import stream_load
from benchmarks.loads.workload import LARGE, SIZES, SMALL, TITLES
from benchmarks.parts.peer_agreement import running
from benchmarks.parts.peer_rows import crashes, in_turn, triton
from benchmarks.setup.goals import GOALS, TRITON
from benchmarks.setup.server_bench import CHUNK, ServerBench

_STEP = 1.1  # from one count of streams to the next
COUNTS = {
    LARGE: [round(10 * _STEP**k) for k in range(40)],
    SMALL: [round(40 * _STEP**k) for k in range(40)],
}
HASTE = 5  # steps at once where little is to be done
_TRITON_MOST = 1000  # streams; its models are configured for 1,024


def streams(bench: ServerBench) -> Iterator[Row]:
    """Live streams as fast as they are answered, beside Triton."""
    work = f"{bench.streams} streams, chunks of {CHUNK} frames, closed loop", "streams", bench.streams

    def serve(model: str, seconds: float) -> Result:
        return bench.watched(stream_load.closed_loop(bench.client, model, bench.chunks(), bench.streams, seconds))

    for size, models in SIZES.items():
        for model in models:
            serve(model, bench.seconds / 4)  # warm up
        served = {model: functools.partial(serve, model, bench.seconds) for model in models}
        yield from in_turn(bench, "streams", work, size, served, {})


def real_time(bench: ServerBench) -> Iterator[Row]:
    """The most streams at the speed of speech whose 99th percentile is on time, beside Triton's count."""
    title = f"most streams in real time with p99 under {ON_TIME:g} ms, {CHUNK} frames every 100 ms"
    seconds = bench.seconds / 2 if bench.quick else bench.seconds

    def serve(model: str, count: int) -> Result:
        return bench.watched(stream_load.real_time(bench.client, model, bench.chunks(), count, seconds))

    for size, models in SIZES.items():
        counts = COUNTS[size][::HASTE] if bench.quick else COUNTS[size]
        searches = {model: Search(counts, functools.partial(serve, model), bench.rounds) for model in models}
        searches[TRITON] = Search(
            [count for count in counts if count <= _TRITON_MOST],
            lambda count, size=size: triton(bench, size, "real_time", count, seconds),
            bench.rounds,
        )
        while going := [search for search in searches.values() if not search.done]:
            for search in going:
                search.round()
        peer, there = searches.pop(TRITON), size in running(bench)
        note = crashes(bench, size, "real_time")
        if peer.out_of_reach and there:
            note = f"{peer.out_of_reach} could not be counted; {note}".removesuffix("; ")
        for model, search in searches.items():
            share = None
            if peer.on_time and peer.late:  # else its count is not known
                most = search.on_time[0]["streams"] if search.on_time else 0
                share = most / peer.on_time[0]["streams"]
            goal = GOALS.get(("realtime", model, TRITON)) if there else None
            yield from found(title, TITLES[model], search, share, goal, note if share is None else "")
        yield from found(f"{TRITON}: {title}", TITLES[size], peer, None, None, note)


def found(
    title: str, model: str, search: Search, share: float | None, goal: float | None, note: str = ""
) -> Iterator[Row]:
    """Yields the row of the largest count on time, also where there is none but a goal or a note, and of the next."""
    beside = TRITON if share is not None or goal else ""
    if search.on_time:
        yield Row.of(title, model, search.on_time, share, beside or "on time", goal, note=note)
    elif beside or note:  # a goal, or a Triton, that would go untold
        late = "no count was on time; " if search.late else ""
        yield Row(title, model, {}, [], share, beside, goal, note=(late + note).removesuffix("; "))
    if search.late:
        yield Row.of(f"{title}: the next count", model, search.late, None, "late")
