"""The parts of the benchmark with live streams: as fast as they are answered, and at the speed of speech."""

from collections.abc import Iterator

from benchmarks.harness.capacity_search import ON_TIME, Search
from benchmarks.harness.rounds import Result, interleaved
from benchmarks.harness.table_rows import Row
from benchmarks.loads import stream_load
from benchmarks.loads.workload import LARGE, SIZES, SMALL, TITLES
from benchmarks.setup.goals import GOALS, TRITON
from benchmarks.setup.serving_bench import CHUNK, Bench, beside, peer_row

_STEP = 1.1  # from one count of streams to the next
_COUNTS = {
    LARGE: [round(10 * _STEP**k) for k in range(40)],
    SMALL: [round(40 * _STEP**k) for k in range(40)],
}
_HASTE = 5  # steps at once where little is to be done
_TRITON_MOST = 1000  # streams; its models are configured for 1,024


def streams(bench: Bench) -> Iterator[Row]:
    """Live streams as fast as they are answered, beside Triton."""
    title = f"{bench.streams} streams, chunks of {CHUNK} frames, closed loop"
    for size, models in SIZES.items():

        def serve(model: str, seconds: float) -> Result:
            opened = stream_load.closed_loop(bench.held.client, model, bench.chunks, bench.streams, seconds)
            return bench.watched(lambda: bench.held.loop.run(opened))

        def triton(seconds: float, size: str = size) -> Result:
            return bench.triton(size, "streams", bench.streams, seconds)

        for model in models:
            serve(model, bench.seconds / 4)  # warm up
        triton(bench.seconds / 4)
        measurings = {model: lambda model=model: serve(model, bench.seconds) for model in models}
        if size in bench.tritons:
            measurings[TRITON] = lambda: triton(bench.seconds)
        rounds = interleaved(measurings, bench.rounds)
        others = {TRITON: rounds[TRITON]} if TRITON in rounds else {}
        note = bench.crashes(size, "streams", rounds.get(TRITON, ()))
        for model in models:
            yield from beside("streams", title, model, "frames_per_second", rounds[model], others, note)
        for other, taken in others.items():
            yield peer_row(f"{other}: {title}", TITLES[size], taken, note)


def real_time(bench: Bench) -> Iterator[Row]:
    """The most streams at the speed of speech whose 99th percentile is on time, beside Triton's count."""
    title = f"most streams in real time with p99 under {ON_TIME:g} ms, {CHUNK} frames every 100 ms"
    seconds = bench.seconds / 2 if bench.quick else bench.seconds
    for size, models in SIZES.items():

        def serve(model: str, count: int) -> Result:
            spoken = stream_load.real_time(bench.held.client, model, bench.chunks, count, seconds)
            return bench.watched(lambda: bench.held.loop.run(spoken))

        def triton(count: int, size: str = size) -> Result:
            return bench.triton(size, "real_time", count, seconds)

        counts = _COUNTS[size][::_HASTE] if bench.quick else _COUNTS[size]
        searches = {
            model: Search(counts, lambda count, model=model: serve(model, count), bench.rounds) for model in models
        }
        searches[TRITON] = Search([count for count in counts if count <= _TRITON_MOST], triton, bench.rounds)
        while going := [search for search in searches.values() if not search.done]:
            for search in going:
                search.round()
        peer = searches.pop(TRITON)
        note = bench.crashes(size, "real_time")
        if peer.out_of_reach and size in bench.tritons:
            note = f"{peer.out_of_reach} could not be counted; {note}".removesuffix("; ")
        for model, search in searches.items():
            share = None
            if peer.on_time and peer.late:  # else its count is not known
                most = search.on_time[0]["streams"] if search.on_time else 0
                share = most / peer.on_time[0]["streams"]
            goal = GOALS.get(("realtime", model, TRITON)) if size in bench.tritons else None
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
