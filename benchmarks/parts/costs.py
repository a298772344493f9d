"""The parts of the benchmark that hold costs to bounds: a frame as streams come, an idle stream, padded steps."""

from collections.abc import Iterator

from benchmarks.harness.table_rows import Row
from benchmarks.loads import sequence_load
from benchmarks.loads.workload import SERVED, TITLES
from benchmarks.parts import stream_sweeps as live_sweeps
from benchmarks.setup.goals import PADDING, STEPS
from benchmarks.setup.serving_bench import CHUNK, Bench
from benchmarks.setup.sweep_bench import Point, SweepBench

_STREAMS, _IDLE = [1, 10, 100, 1000], 2000
_FEW_STREAMS, _FEW_IDLE = [1, 100], 400
_SHORTER = 5  # times, rounds of so many points are


def growth(bench: Bench) -> Iterator[Point]:
    """What a frame costs with more and more streams, which is never to rise."""
    yield from live_sweeps.streams(_as_sweep(bench))


def idle(bench: Bench) -> Iterator[Point]:
    """What a stream with nothing to do holds beside its state."""
    yield from live_sweeps.idle(_as_sweep(bench))


def padding(bench: Bench) -> Iterator[Row]:
    """The steps that the server has computed for padding in this sitting, all parts before this one together.

    No more than that: a product's rows, which may be rounded up within the network, are counted nowhere.
    """
    for model in SERVED:
        opened = sequence_load.sdk_calls(bench.held.server.address, model, bench.callers, connections=1)
        with bench.held.loop.entered(opened) as calls:  # so that there is something, also where this part is alone
            bench.held.loop.run(sequence_load.closed_loop(calls, bench.recordings, bench.seconds / _SHORTER))
        taken = bench.held.server.metrics(model=model)
        steps, padded = taken["seqloom_steps_total"], taken["seqloom_padded_steps_total"]
        share = padded / (steps + padded)
        values = {"steps": steps, "padded_steps": padded, "padding_share": share}
        most = PADDING[bench.held.conditions["device"]]
        title = "padded steps of the whole sitting"
        yield Row.of(title, TITLES[model], [values], share, STEPS, most, lower_is_better=True)


def _as_sweep(bench: Bench) -> SweepBench:
    axes = {
        "streams": _FEW_STREAMS if bench.quick else _STREAMS,
        "chunks": [CHUNK],
        "idle": [_FEW_IDLE if bench.quick else _IDLE],
    }
    seconds = bench.seconds / _SHORTER
    return SweepBench(bench.held, bench.alone, bench.recordings, axes, bench.rounds, seconds, bench.flags)
