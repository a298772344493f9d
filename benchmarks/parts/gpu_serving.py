"""The parts of the GPU benchmark that go through a server: every kind of work, and how long its device is idle."""

import asyncio
import contextlib
import functools
import os
from collections.abc import Iterator

from benchmarks.harness.capacity_search import ON_TIME
from benchmarks.harness.child_process import program
from benchmarks.harness.rounds import Result, interleaved
from benchmarks.harness.table_rows import Row
from benchmarks.loads import sequence_load, stream_load, training_load
from benchmarks.loads.workload import LARGE, MODELS, TITLES
from benchmarks.setup.server_bench import CHUNK, ServerBench

_MOST_PROGRAMS = 8  # processes that speak


def callers(bench: ServerBench) -> Iterator[Row]:
    """Whole recordings: one caller at a time, and many."""
    for model in MODELS:
        opened = sequence_load.sdk_calls(bench.server.address, model, bench.callers, connections=1)
        with bench.loop.entered(opened) as calls:

            def serve(count: int, calls: list[sequence_load.Call] = calls) -> Result:
                return bench.watched(sequence_load.closed_loop(calls[:count], bench.recordings, bench.seconds))

            serve(bench.callers)  # warm up
            rounds = interleaved({n: functools.partial(serve, n) for n in (1, bench.callers)}, bench.rounds)
        for count, taken in rounds.items():
            row = Row.of(f"whole recordings, {count} callers", TITLES[model], taken)
            yield row.against(rounds[1], "frames_per_second", "one caller")


def streams(bench: ServerBench) -> Iterator[Row]:
    """Live streams as fast as they are answered."""
    for model in MODELS:
        rounds = [
            bench.watched(stream_load.closed_loop(bench.client, model, bench.chunks(), bench.callers, bench.seconds))
            for _ in range(bench.rounds)
        ]
        yield Row.of(f"{bench.callers} streams, chunks of {CHUNK}, closed loop", TITLES[model], rounds)


def real_time(bench: ServerBench) -> Iterator[Row]:
    """Streams at the speed of speech, more and more of them until they are late."""
    for count in bench.axes["streams"]:
        result = _speak(bench, count)
        late = result["p99_ms"] >= ON_TIME
        title = f"{count} streams in real time, {CHUNK} frames every 100 ms"
        yield Row.of(title, TITLES[LARGE], [result], None, "late" if late else "on time")
        if late:
            break


def mixed(bench: ServerBench) -> Iterator[Row]:
    """Live streams, whole recordings and training at once."""
    opened = sequence_load.sdk_calls(bench.server.address, LARGE, bench.callers, connections=1)
    own = training_load.callers_of_gradients(bench.client, LARGE, bench.trainers)
    with bench.loop.entered(opened) as calls:

        async def everything() -> Result:
            live, whole, trained = await asyncio.gather(
                stream_load.real_time(bench.client, LARGE, bench.chunks(), bench.callers, bench.seconds),
                sequence_load.closed_loop(calls, bench.recordings, bench.seconds),
                training_load.waves(own, bench.examples(LARGE), bench.seconds),
            )
            rates = [each["frames_per_second"] for each in (live, whole, trained)]
            return live | {"frames_per_second": sum(rates)}

        rounds = [bench.watched(everything()) for _ in range(bench.rounds)]
    title = f"{bench.callers} streams in real time, beside {bench.callers} callers and {bench.trainers} trainers"
    yield Row.of(title, TITLES[LARGE], rounds)


def _speak(bench: ServerBench, count: int) -> Result:
    """One round of streams spread over processes: the frames of all, the delays of whichever is latest."""
    processes = min(count, _MOST_PROGRAMS, max(2, (os.cpu_count() or 2) // 2))
    shares = [count // processes + (number < count % processes) for number in range(processes)]
    with contextlib.ExitStack() as stack:
        speakers = [stack.enter_context(program("loads.streamers", bench.server.address, LARGE)) for _ in shares]

        async def together() -> Result:
            asked = zip(speakers, shares, strict=True)
            results = await asyncio.gather(
                *(asyncio.to_thread(speaker.ask, [share, bench.seconds]) for speaker, share in asked)
            )
            worst = {name: max(result[name] for result in results) for name in results[0]}
            return worst | {"frames_per_second": sum(result["frames_per_second"] for result in results)}

        return bench.watched(together())
