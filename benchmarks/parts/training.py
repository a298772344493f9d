"""The parts of the training benchmark, each a row or more: what is measured, and beside what."""

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from seqloom.v1 import training_service_pb2 as pb

from benchmarks.harness.child_process import Program, program
from benchmarks.harness.peak_memory import peak_memory
from benchmarks.harness.rounds import Result, interleaved, observed, ratio
from benchmarks.harness.table_rows import Part, Row
from benchmarks.loads import sequence_load, stream_load, training_load
from benchmarks.loads.training_workload import GRU, LSTM, NARROW, TRAINED, TRAINED_TITLES, Labelled, labelled
from benchmarks.loads.workload import LARGE, chunks
from benchmarks.setup.goals import AUTOGRAD, DENSE, GOALS, SUM
from benchmarks.setup.server_setup import Sitting

CHUNK = 10  # frames
TRAINERS = 2


@dataclass
class TrainingBench:
    """What the parts need. seconds: of one round. steps: of the long call. autograd: the program autograd.py.

    data: arguments for the programs that choose recordings. callers: of a recording each. streams: in real time. ahead:
    whether callers that send the next recording ahead are measured, too. samples: recordings whose answers are weighed.
    """

    held: Sitting
    autograd: Program
    recordings: list[np.ndarray]
    data: tuple[object, ...]
    rounds: int
    seconds: float
    callers: int = 32
    streams: int = 20
    steps: int = 10_000
    samples: int = 64
    ahead: bool = False

    @cached_property
    def examples(self) -> dict[str, list[Labelled]]:
        return {model: labelled(self.recordings, spec) for model, spec in TRAINED.items()}

    def watched(self, measure: Callable[[], Awaitable[Result]]) -> Result:
        """Runs one round and adds what the server says of it."""
        with observed(self.held.server, extra := {}):
            result = self.held.loop.run(measure())
        return result | extra

    def speech(self, beside: Callable[[], Awaitable[Result]] | None = None) -> Result:
        """One round of real-time streams, with what the streams took of the device."""
        before, begun = self._device_seconds("stream"), time.perf_counter()
        result = self.held.loop.run(
            stream_load.real_time(self.held.client, LARGE, self._chunks, self.streams, self.seconds, beside)
        )
        share = (self._device_seconds("stream") - before) / (time.perf_counter() - begun)
        return result | {"stream_device_share": share}

    @cached_property
    def _chunks(self) -> list[np.ndarray]:
        return chunks(self.recordings, CHUNK)

    def _device_seconds(self, op: str) -> float:
        return self.held.server.metrics(op=op)["seqloom_compute_duration_seconds_sum"]


def forward_backward(bench: TrainingBench) -> Iterator[Row]:
    """Callers of one run, beside plain autograd passes over as many recordings at once."""
    for model in (LARGE, NARROW):
        yield from _beside_autograd(bench, model)


def cells(bench: TrainingBench) -> Iterator[Row]:
    """The same for the other cells."""
    for model in (GRU, LSTM):
        yield from _beside_autograd(bench, model)


def gradients(bench: TrainingBench) -> Iterator[Row]:
    """What each caller's own gradients cost, in device time and bytes, beside the sum of them."""
    for model in (LARGE, NARROW):
        own = training_load.callers_of_gradients(bench.held.client, model, bench.callers)
        opened = training_load.callers_of_one_run(bench.held.client, model, bench.callers)
        with bench.held.loop.entered(opened) as summed:
            kinds = {"own": own, "summed": summed}
            for calls in kinds.values():
                _waves(bench, model, calls, bench.seconds / 4)  # warm up
            rounds = interleaved(
                {name: partial(_waves, bench, model, calls, bench.seconds) for name, calls in kinds.items()},
                bench.rounds,
            )
        share = ratio(rounds["own"], rounds["summed"], "device_us_a_frame")
        title = f"gradients of {bench.callers} callers at once, each its own of all parameters"
        goal = GOALS.get(("gradients", model, SUM))
        yield Row.of(title, TRAINED_TITLES[model], rounds["own"], share, SUM, goal, lower_is_better=True)
        title = f"forward_backward of {bench.callers} callers at once, summed in one run"
        yield Row.of(title, TRAINED_TITLES[model], rounds["summed"])
        yield _on_the_wire(bench, model)


def mixed(bench: TrainingBench) -> Iterator[Row]:
    """Real-time streams while trainers saturate the server: what each does to the other."""
    with program("loads.trainers", bench.held.server.address, LARGE, TRAINERS, *bench.data) as trainers:
        trainers.ask([bench.seconds / 4])  # warm up
        rounds = interleaved(
            {
                "streams": bench.speech,
                "trainers": lambda: trainers.ask([bench.seconds]),
                "both": lambda: bench.speech(lambda: asyncio.to_thread(trainers.ask, [bench.seconds])),
            },
            bench.rounds,
        )
    beside = [_trainers_of(result) for result in rounds["both"]]
    for one, alone in zip(beside, rounds["trainers"], strict=True):
        left = one["frames_per_second"] / alone["frames_per_second"]
        one["of_what_streams_leave"] = left / (1 - one["stream_device_share"])
    spoken, trained = f"{bench.streams} streams in real time", f"{TRAINERS} trainers, a run each"
    title = TRAINED_TITLES[LARGE]
    yield Row.of(spoken, title, rounds["streams"])
    yield Row.of(f"{spoken}, beside {TRAINERS} trainers", title, rounds["both"])
    yield Row.of(trained, title, rounds["trainers"])
    share = ratio(beside, rounds["trainers"], "frames_per_second")
    yield Row.of(f"{trained}, beside {bench.streams} streams", title, beside, share, "the trainers alone")


def long_call(bench: TrainingBench) -> Iterator[Row]:
    """One training call of very many steps: what it takes of memory, and what it does to live streams."""
    with program("loads.trainers", bench.held.server.address, LARGE, 1, *bench.data) as trainer:

        def beside() -> Result:
            with peak_memory(bench.held.server.pid, extra := {}):
                result = bench.speech(lambda: asyncio.to_thread(trainer.ask, ["long", bench.steps]))
            return result | extra

        rounds = interleaved({"alone": bench.speech, "beside": beside}, bench.rounds)
    share = ratio(rounds["beside"], rounds["alone"], "max_ms")
    title = f"{bench.streams} streams in real time"
    yield Row.of(title, TRAINED_TITLES[LARGE], rounds["alone"])
    title += f", beside a training call of {bench.steps:,} steps"
    without = "the longest delay without"
    yield Row.of(title, TRAINED_TITLES[LARGE], rounds["beside"], share, without, lower_is_better=True)


PARTS: dict[str, Part] = {
    "forward_backward": forward_backward,
    "gradients": gradients,
    "mixed": mixed,
    "long": long_call,
    "cells": cells,
}


def _beside_autograd(bench: TrainingBench, model: str) -> Iterator[Row]:
    examples = bench.examples[model]
    bench.autograd.ask([model, bench.callers, 0])  # warm up
    opened = training_load.callers_of_one_run(bench.held.client, model, bench.callers)
    with bench.held.loop.entered(opened) as calls:

        def served(in_flight: int) -> Result:
            """Each caller sends its next recording when one of its `in_flight` calls is answered."""
            waiting = list(calls) * in_flight
            return bench.watched(lambda: sequence_load.closed_loop(waiting, examples, bench.seconds))

        bench.held.loop.run(sequence_load.closed_loop(calls, examples, bench.seconds / 4))  # warm up
        measurings = {"served": lambda: served(1)}
        if bench.ahead:
            measurings["pipelined"] = lambda: served(2)
        measurings["alone"] = lambda: bench.autograd.ask([model, bench.callers, bench.seconds])
        rounds = interleaved(measurings, bench.rounds)
    title = f"forward_backward of {bench.callers} callers of one run, a recording each"
    for name, more in (("served", ""), ("pipelined", ", the next sent ahead")):
        if name in rounds:
            share = ratio(rounds[name], rounds["alone"], "frames_per_second")
            goal = GOALS.get(("forward_backward", model, AUTOGRAD))
            yield Row.of(title + more, TRAINED_TITLES[model], rounds[name], share, AUTOGRAD, goal)
    yield Row.of(f"one autograd pass over {bench.callers} recordings", TRAINED_TITLES[model], rounds["alone"])


def _waves(bench: TrainingBench, model: str, calls: list[sequence_load.Call], seconds: float) -> Result:
    return bench.watched(lambda: training_load.waves(calls, bench.examples[model], seconds))


def _on_the_wire(bench: TrainingBench, model: str) -> Row:
    """The bytes of answers, over recordings as they come, beside those of a dense one."""

    def weighed(example: Labelled, form: pb.ParameterForm) -> int:
        return bench.held.loop.run(training_load.reply_bytes(bench.held.server.address, model, example, form))

    examples = list(itertools.islice(bench.examples[model], bench.samples))
    mean = statistics.mean(weighed(example, pb.PARAMETER_FORM_SMALLEST) for example in examples)
    dense = weighed(examples[0], pb.PARAMETER_FORM_DENSE)
    values = {"reply_kb": mean / 1e3, "dense_kb": dense / 1e3}
    title, share = "the answer to a call for gradients", mean / dense
    goal = GOALS.get(("gradients", model, DENSE))
    return Row.of(title, TRAINED_TITLES[model], [values], share, DENSE, goal, lower_is_better=True)


def _trainers_of(result: Result) -> Result:
    """What trainers did in a round of streams."""
    own = {name.removeprefix("beside_"): value for name, value in result.items() if name.startswith("beside_")}
    return own | {"stream_device_share": result["stream_device_share"]}
