"""Sweeps of whole sequences: over callers, over the length of sequences, and over the width of networks."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from seqloom import ModelSpec

from benchmarks.harness.rounds import interleaved
from benchmarks.harness.table_rows import Row
from benchmarks.loads import sequence_load
from benchmarks.loads.workload import FRAME, LARGE, MODELS, SMALL, TITLES
from benchmarks.setup.goals import ALONE
from benchmarks.setup.server_bench import ServerBench

LENGTH_CALLERS = 4
WIDTH_CALLERS = 64
CLASSES = 40
_GATED_WIDTHS = (256, 1024)  # those of GRU and LSTM, where they are among the widths
_ALONE = "baselines.network_alone", "labels"


def wide_models(widths: list[int]) -> dict[str, ModelSpec]:
    """The networks of the sweep over widths by name."""
    cells = [("elman", width) for width in widths]
    cells += [(cell, width) for cell in ("gru", "lstm") for width in widths if width in _GATED_WIDTHS]
    return {f"{cell}-{width}": ModelSpec(cell, FRAME, width, CLASSES) for cell, width in cells}


def callers(bench: ServerBench) -> Iterator[Row]:
    """Whole recordings of more and more callers, beside the network alone over batches of as many."""
    for model in MODELS:
        for count, served, alone in _beside_alone(bench, model, model, bench.axes["callers"]):
            who = {"sweep": "callers", "at": {"callers": count}}
            row = Row.of(f"whole recordings, {_callers(count)}", TITLES[model], served, who="served", **who)
            yield row.against(alone, "frames_per_second", ALONE)
            yield Row.of(f"{ALONE}, batches of {count}", TITLES[model], alone, who="alone", **who)


def widths(bench: ServerBench) -> Iterator[Row]:
    """Networks of more and more hidden units, beside the same ones alone over batches of as many recordings."""
    for model, spec in wide_models(bench.axes["widths"]).items():
        title, who = f"{spec.cell} H={spec.hidden_size} O={spec.output_size}", {"at": {"hidden": spec.hidden_size}}
        for count, served, alone in _beside_alone(bench, model, dataclasses.asdict(spec), [WIDTH_CALLERS]):
            row = Row.of(f"whole recordings, {_callers(count)}", title, served, sweep="widths", who=spec.cell, **who)
            yield row.against(alone, "frames_per_second", ALONE)
            told = {"sweep": "widths", "who": f"{spec.cell} alone"}
            yield Row.of(f"{ALONE}, batches of {count}", title, alone, **told, **who)


def lengths(bench: ServerBench) -> Iterator[Row]:
    """Sequences of ever more steps from a fixed number of callers."""
    generator = np.random.default_rng(4)
    sequences = {steps: generator.normal(0, 0.1, (steps, FRAME)).astype("f4") for steps in bench.axes["lengths"]}
    for model in (SMALL, LARGE):
        opened = sequence_load.sdk_calls(bench.server.address, model, LENGTH_CALLERS, connections=1)
        with bench.loop.entered(opened) as calls:

            def serve(frames: np.ndarray, calls: list[sequence_load.Call] = calls):
                return bench.watched(sequence_load.closed_loop(calls, [frames], bench.seconds))

            measurings = {steps: functools.partial(serve, frames) for steps, frames in sequences.items()}
            rounds = interleaved(measurings, bench.rounds)
        for steps, taken in rounds.items():
            title = f"sequences of {steps:,} steps, {_callers(LENGTH_CALLERS)}"
            yield Row.of(title, TITLES[model], taken, sweep="lengths", who="served", at={"steps": steps})


def _beside_alone(bench: ServerBench, model: str, network: object, counts: list[int]) -> Iterator[tuple]:
    """Yields of each count of callers the rounds served, and those of the network alone; network: see there."""
    opened = sequence_load.sdk_calls(bench.server.address, model, max(counts), connections=1)
    with bench.loop.entered(opened) as calls:

        def serve(count: int):
            return bench.watched(sequence_load.closed_loop(calls[:count], bench.recordings, bench.seconds))

        serve(max(counts))  # warm up
        bench.ask(*_ALONE, network, max(counts), 0)
        measurings = {}
        for count in counts:
            measurings["served", count] = functools.partial(serve, count)
            measurings["alone", count] = functools.partial(bench.ask, *_ALONE, network, count, bench.seconds / 2)
        rounds = interleaved(measurings, bench.rounds)
    for count in counts:
        yield count, rounds["served", count], rounds["alone", count]


def _callers(count: int) -> str:
    return "1 caller" if count == 1 else f"{count} callers"
