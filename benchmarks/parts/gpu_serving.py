"""The parts of the GPU benchmark that go through a server: every kind of work, and how long its device is idle."""

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.harness.child_process import program
from benchmarks.harness.rounds import Result, interleaved, observed, ratio
from benchmarks.harness.table_rows import Row
from benchmarks.loads import sequence_load, stream_load, training_load
from benchmarks.loads.streamers import CHUNK
from benchmarks.loads.training_workload import Labelled, labelled
from benchmarks.loads.workload import LARGE, MODELS, TITLES, chunks
from benchmarks.setup.server_setup import Sitting

ON_TIME = 100.0  # milliseconds: a chunk's outputs are there before the next chunk


@dataclass
class ServedBench:
    """What the parts need. callers: of whole recordings, and streams of a closed loop. trainers: callers of gradients.

    streams: in real time, counts that are tried one after the other. programs: processes that they are spread over.
    """

    held: Sitting
    recordings: list[np.ndarray]
    callers: int
    trainers: int
    streams: list[int]
    programs: int
    rounds: int
    seconds: float

    def watched(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Runs one round and adds what the server says of it."""
        with observed(self.held.server, extra := {}):
            result = self.held.loop.run(work())
        return result | extra

    @functools.cached_property
    def examples(self) -> list[Labelled]:
        return labelled(self.recordings, MODELS[LARGE])


def callers(bench: ServedBench) -> Iterator[Row]:
    """Whole recordings: one caller at a time, and many."""
    for model in MODELS:
        measurings: dict[str, Callable[[], Result]] = {}
        with contextlib.ExitStack() as stack:
            for count in (1, bench.callers):
                opened = sequence_load.sdk_calls(bench.held.server.address, model, count, connections=1)
                calls = stack.enter_context(bench.held.loop.entered(opened))
                load = functools.partial(sequence_load.closed_loop, calls, bench.recordings, bench.seconds)
                measurings[str(count)] = functools.partial(bench.watched, load)
            rounds = interleaved(measurings, 1 + bench.rounds)
        for count in (1, bench.callers):
            own = rounds[str(count)][1:]  # the first warms up
            share = ratio(own, rounds["1"][1:], "frames_per_second")
            yield Row.of(f"whole recordings, {count} callers", TITLES[model], own, share, "one caller")


def streams(bench: ServedBench) -> Iterator[Row]:
    """Live streams as fast as they are answered."""
    spoken = chunks(bench.recordings, CHUNK)
    for model in MODELS:
        load = functools.partial(
            stream_load.closed_loop, bench.held.client, model, spoken, bench.callers, bench.seconds
        )
        rounds = [bench.watched(load) for _ in range(bench.rounds)]
        yield Row.of(f"{bench.callers} streams, chunks of {CHUNK}, closed loop", TITLES[model], rounds)


def real_time(bench: ServedBench) -> Iterator[Row]:
    """Streams at the speed of speech, more and more of them until they are late."""
    for count in bench.streams:
        result = _speak(bench, count, min(bench.programs, count))
        late = result["p99_ms"] >= ON_TIME
        title = f"{count} streams in real time, {CHUNK} frames every 100 ms"
        yield Row.of(title, TITLES[LARGE], [result], None, "late" if late else "on time")
        if late:
            break


def training(bench: ServedBench) -> Iterator[Row]:
    """Callers of one run, and callers of gradients of their own."""
    own = training_load.callers_of_gradients(bench.held.client, LARGE, bench.trainers)
    opened = training_load.callers_of_one_run(bench.held.client, LARGE, bench.trainers)
    with bench.held.loop.entered(opened) as summed:
        measurings = {
            name: functools.partial(
                bench.watched, functools.partial(training_load.waves, calls, bench.examples, bench.seconds)
            )
            for name, calls in (("own", own), ("summed", summed))
        }
        rounds = interleaved(measurings, 1 + bench.rounds)
    share = ratio(rounds["own"][1:], rounds["summed"][1:], "device_us_a_frame")
    title = f"{bench.trainers} callers at once"
    yield Row.of(
        f"gradients of {title}", TITLES[LARGE], rounds["own"][1:], share, "the sum's device time", lower_is_better=True
    )
    yield Row.of(f"forward_backward of {title}, one run", TITLES[LARGE], rounds["summed"][1:])


def mixed(bench: ServedBench) -> Iterator[Row]:
    """Live streams, whole recordings and training at once."""
    spoken = chunks(bench.recordings, CHUNK)
    opened = sequence_load.sdk_calls(bench.held.server.address, LARGE, bench.callers, connections=1)
    own = training_load.callers_of_gradients(bench.held.client, LARGE, bench.trainers)
    with bench.held.loop.entered(opened) as calls:

        async def everything() -> Result:
            live, whole, trained = await asyncio.gather(
                stream_load.real_time(bench.held.client, LARGE, spoken, bench.callers, bench.seconds),
                sequence_load.closed_loop(calls, bench.recordings, bench.seconds),
                training_load.waves(own, bench.examples, bench.seconds),
            )
            rates = [each["frames_per_second"] for each in (live, whole, trained)]
            return live | {"frames_per_second": sum(rates)}

        rounds = [bench.watched(everything) for _ in range(bench.rounds)]
    title = f"{bench.callers} streams in real time, beside {bench.callers} callers and {bench.trainers} trainers"
    yield Row.of(title, TITLES[LARGE], rounds)


def _speak(bench: ServedBench, count: int, processes: int) -> Result:
    """One round of streams spread over processes: the frames of all, the delays of whichever is latest."""
    shares = [count // processes + (number < count % processes) for number in range(processes)]
    with contextlib.ExitStack() as stack:
        address = bench.held.server.address
        speakers = [stack.enter_context(program("loads.streamers", address, LARGE)) for _ in shares]

        async def together() -> list[Result]:
            asked = ([share, bench.seconds] for share in shares)
            return await asyncio.gather(
                *(asyncio.to_thread(speaker.ask, each) for speaker, each in zip(speakers, asked, strict=True))
            )

        with observed(bench.held.server, extra := {}):
            results = bench.held.loop.run(together())
    worst = {name: max(result[name] for result in results) for name in results[0]}
    return worst | {"frames_per_second": sum(result["frames_per_second"] for result in results)} | extra
