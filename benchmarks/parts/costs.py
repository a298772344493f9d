"""The parts of the benchmark that hold costs to bounds: a frame as streams come, an idle stream, padded steps."""

import dataclasses
from collections.abc import Iterator

from benchmarks.harness.table_rows import Row
from benchmarks.loads import sequence_load
from benchmarks.loads.workload import SERVED, TITLES
from benchmarks.parts import stream_sweeps
from benchmarks.setup.goals import PADDING, STEPS
from benchmarks.setup.server_bench import CHUNK, ServerBench

_SHORTER = 5  # times, rounds of so many points are


def growth(bench: ServerBench) -> Iterator[Row]:
    """What a frame costs with more and more streams, which is never to rise."""
    axes = bench.axes | {"chunks": [CHUNK]}
    yield from stream_sweeps.streams(dataclasses.replace(bench, seconds=bench.seconds / _SHORTER, axes=axes))


def padding(bench: ServerBench) -> Iterator[Row]:
    """The steps that the server has computed for padding since it began, all parts before this one together.

    No more than that: a product's rows, which may be rounded up within the network, are counted nowhere.
    """
    for model in SERVED:
        opened = sequence_load.sdk_calls(bench.server.address, model, bench.callers, connections=1)
        with bench.loop.entered(opened) as calls:  # so that there is something, also where this part is alone
            bench.loop.run(sequence_load.closed_loop(calls, bench.recordings, bench.seconds / _SHORTER))
        taken = bench.server.metrics(model=model)
        steps, padded = taken["seqloom_steps_total"], taken["seqloom_padded_steps_total"]
        share = padded / (steps + padded)
        values = {"steps": steps, "padded_steps": padded, "padding_share": share}
        most = PADDING[bench.conditions["device"]]
        title = "padded steps of the whole sitting"
        yield Row.of(title, TITLES[model], [values], share, STEPS, most, lower_is_better=True)
