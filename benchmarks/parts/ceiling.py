"""The part of the benchmark that says how far a slice is from its bare products: what this processor could do."""

from collections.abc import Callable, Iterator

from benchmarks.harness.child_process import Program, program
from benchmarks.harness.rounds import Result
from benchmarks.harness.table_rows import Row
from benchmarks.loads import sequence_load, stream_load
from benchmarks.loads.workload import SERVED, TITLES
from benchmarks.setup.goals import CEILING, PRODUCTS
from benchmarks.setup.server_bench import CHUNK, ServerBench

_SHARE = 0.4  # of a round's seconds, for each of the two


def ceiling(bench: ServerBench) -> Iterator[Row]:
    """Device time a frame of recordings and of streams, beside the bare products of slices of the same size."""
    with program("baselines.bare_products") as products:
        for model in SERVED:
            opened = sequence_load.sdk_calls(bench.server.address, model, bench.callers, connections=1)
            with bench.loop.entered(opened) as calls:

                def recordings(seconds: float, calls=calls) -> Result:
                    return bench.watched(sequence_load.closed_loop(calls, bench.recordings, seconds))

                def streams(seconds: float, model=model) -> Result:
                    chunks = bench.chunks()
                    return bench.watched(stream_load.closed_loop(bench.client, model, chunks, bench.streams, seconds))

                works: dict[str, Callable[[float], Result]] = {
                    f"whole recordings, {bench.callers} callers": recordings,
                    f"{bench.streams} streams, chunks of {CHUNK} frames": streams,
                }
                for work, serve in works.items():
                    serve(_SHARE * bench.seconds)  # warms up
                    rounds = [_beside(products, serve, model, _SHARE * bench.seconds) for _ in range(bench.rounds)]
                    title = f"device time, {work}"
                    yield Row.of(title, TITLES[model], rounds).against(
                        [{"device_us_a_frame": each["ceiling_us"]} for each in rounds],
                        "device_us_a_frame",
                        PRODUCTS,
                        CEILING.get(model),
                    )


def _beside(products: Program, serve: Callable[[float], Result], model: str, seconds: float) -> Result:
    """One round: what was served, and the bare products of slices that are as large as those were on average."""
    served = serve(seconds)
    sequences = served["batch_sequences"]
    return served | products.ask([model, sequences, served["batch_steps"] / sequences, seconds])
