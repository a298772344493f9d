"""Sweeps of whole sequences: over callers, over the length of sequences, and over the width of networks."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from seqloom import ModelSpec

from benchmarks.harness.rounds import interleaved
from benchmarks.loads import sequence_load
from benchmarks.loads.workload import FRAME, LARGE, MODELS, SMALL, TITLES
from benchmarks.setup.sweep_bench import Point, SweepBench, beside, point

LENGTH_CALLERS = 4
WIDTH_CALLERS = 64
CLASSES = 40
_GATED_WIDTHS = (256, 1024)  # those of GRU and LSTM, where they are among the widths


def wide_models(widths: list[int]) -> dict[str, ModelSpec]:
    """The networks of the sweep over widths by name."""
    cells = [("elman", width) for width in widths]
    cells += [(cell, width) for cell in ("gru", "lstm") for width in widths if width in _GATED_WIDTHS]
    return {f"{cell}-{width}": ModelSpec(cell, FRAME, width, CLASSES) for cell, width in cells}


def callers(bench: SweepBench) -> Iterator[Point]:
    """Whole recordings of more and more callers, beside the network alone over batches of as many."""
    loop, most = bench.held.loop, max(bench.axes["callers"])
    for model in MODELS:
        with loop.entered(sequence_load.sdk_calls(bench.held.server.address, model, most, connections=1)) as calls:

            def served(count: int, calls: list[sequence_load.Call] = calls):
                return bench.watched(sequence_load.closed_loop(calls[:count], bench.recordings, bench.seconds))

            loop.run(sequence_load.closed_loop(calls, bench.recordings, bench.seconds))  # warm up
            bench.alone.ask([model, most, 0])
            measurings = {}
            for count in bench.axes["callers"]:
                measurings["served", count] = lambda count=count: served(count)
                measurings["alone", count] = lambda count=count, model=model: bench.alone.ask(
                    [model, count, bench.seconds / 2]
                )
            rounds = interleaved(measurings, bench.rounds)
        for count in bench.axes["callers"]:
            at = {"callers": count}
            alone = point(
                "callers", "alone", at, f"the network alone, batches of {count}", TITLES[model], rounds["alone", count]
            )
            title = f"whole recordings, {_callers(count)}"
            one = point("callers", "served", at, title, TITLES[model], rounds["served", count])
            yield beside(one, alone, "frames_per_second", "the network alone")
            yield alone


def lengths(bench: SweepBench) -> Iterator[Point]:
    """Sequences of ever more steps from a fixed number of callers."""
    generator = np.random.default_rng(4)
    sequences = {steps: generator.normal(0, 0.1, (steps, FRAME)).astype("f4") for steps in bench.axes["lengths"]}
    for model in (SMALL, LARGE):
        opened = sequence_load.sdk_calls(bench.held.server.address, model, LENGTH_CALLERS, connections=1)
        with bench.held.loop.entered(opened) as calls:
            rounds = interleaved(
                {
                    steps: lambda frames=frames, calls=calls: bench.watched(
                        sequence_load.closed_loop(calls, [frames], bench.seconds)
                    )
                    for steps, frames in sequences.items()
                },
                bench.rounds,
            )
        for steps, taken in rounds.items():
            title = f"sequences of {steps:,} steps, {_callers(LENGTH_CALLERS)}"
            yield point("lengths", "served", {"steps": steps}, title, TITLES[model], taken)


def widths(bench: SweepBench) -> Iterator[Point]:
    """Networks of more and more hidden units, beside the same ones alone over batches of as many recordings."""
    for model, spec in wide_models(bench.axes["widths"]).items():
        fields = dataclasses.asdict(spec)
        opened = sequence_load.sdk_calls(bench.held.server.address, model, WIDTH_CALLERS, connections=1)
        with bench.held.loop.entered(opened) as calls:
            bench.held.loop.run(sequence_load.closed_loop(calls, bench.recordings, bench.seconds / 4))  # warm up
            bench.alone.ask([fields, WIDTH_CALLERS, 0])
            rounds = interleaved(
                {
                    "served": lambda calls=calls: bench.watched(
                        sequence_load.closed_loop(calls, bench.recordings, bench.seconds)
                    ),
                    "alone": lambda fields=fields: bench.alone.ask([fields, WIDTH_CALLERS, bench.seconds / 2]),
                },
                bench.rounds,
            )
        title = f"{spec.cell} H={spec.hidden_size} O={spec.output_size}"
        at = {"hidden": spec.hidden_size}
        alone_title = f"the network alone, batches of {WIDTH_CALLERS}"
        alone = point("widths", f"{spec.cell} alone", at, alone_title, title, rounds["alone"])
        served_title = f"whole recordings, {_callers(WIDTH_CALLERS)}"
        one = point("widths", spec.cell, at, served_title, title, rounds["served"])
        yield beside(one, alone, "frames_per_second", "the network alone")
        yield alone


def _callers(count: int) -> str:
    return "1 caller" if count == 1 else f"{count} callers"
