"""The parts of the benchmark, each a row or more: what is measured, and beside what."""

import contextlib
import statistics
from collections.abc import Callable, Iterator

from benchmarks.harness.child_process import program
from benchmarks.harness.rounds import Result, interleaved
from benchmarks.harness.table_rows import Part, Row
from benchmarks.loads import sequence_load
from benchmarks.loads.workload import MODELS, SIZES, SMALL, TITLES
from benchmarks.parts.costs import growth, idle, padding
from benchmarks.parts.streams import real_time, streams
from benchmarks.parts.training import TrainingBench, forward_backward, gradients
from benchmarks.setup.goals import ALONE, ECHO, TRITON
from benchmarks.setup.serving_bench import CHUNK, Bench, beside, peer_row

__all__ = ["CHUNK", "PARTS", "Bench"]


def callers(bench: Bench) -> Iterator[Row]:
    """Whole recordings over one shared connection, beside Triton and the network alone."""
    title = f"whole recordings, {bench.callers} callers"
    for size, models in SIZES.items():

        def triton(seconds: float, size: str = size) -> Result:
            return bench.triton(size, "callers", bench.callers, seconds)

        bench.alone.ask([size, bench.callers, 0])  # warm up
        triton(bench.seconds / 4)
        with contextlib.ExitStack() as stack:
            served = {model: stack.enter_context(_sdk_calls(bench, model, connections=1)) for model in models}
            measurings = {model: lambda serve=serve: bench.watched(serve) for model, serve in served.items()}
            if size in bench.tritons:
                measurings[TRITON] = lambda: triton(bench.seconds)
            measurings[ALONE] = lambda size=size: bench.alone.ask([size, bench.callers, bench.seconds])
            rounds = interleaved(measurings, bench.rounds)
        others = {name: rounds[name] for name in (ALONE, TRITON) if name in rounds}
        note = bench.crashes(size, "callers", rounds.get(TRITON, ()))
        for model in models:
            yield from beside("callers", title, model, "frames_per_second", rounds[model], others, note)
        if TRITON in others:
            yield peer_row(f"{TRITON}: {title}", TITLES[size], rounds[TRITON], note)
        yield Row.of(f"{ALONE}, batches of {bench.callers}", TITLES[size], rounds[ALONE])


def connections(bench: Bench) -> Iterator[Row]:
    """Whole recordings with a connection each, beside gRPC's bare echo."""
    size = sequence_load.answer_bytes_of(MODELS[SMALL].hidden_size)
    with (
        program("baselines.unary_echo") as echo,
        _sdk_calls(bench, SMALL, connections=bench.callers) as serve,
        bench.held.loop.entered(sequence_load.echo_calls(echo.greeting, size, bench.callers)) as echo_calls,
    ):
        rounds = interleaved(
            {
                SMALL: lambda: bench.watched(serve),
                ECHO: lambda: bench.held.loop.run(
                    sequence_load.closed_loop(echo_calls, bench.recordings, bench.seconds)
                ),
            },
            bench.rounds,
        )
    title = f"whole recordings, {bench.callers} callers, a connection each"
    others = {ECHO: rounds[ECHO]}
    yield from beside("connections", title, SMALL, "answers_per_second", rounds[SMALL], others)
    yield Row.of("a bare grpc.aio unary echo of the same bytes", TITLES[SMALL], rounds[ECHO])


def blocking(bench: Bench) -> Iterator[Row]:
    """A blocking call, beside the bare gRPC call of the same frames."""
    blocks = max(10, round(8 * bench.seconds))
    with program("baselines.blocking_call") as caller:
        rounds = [caller.ask([bench.held.server.address, SMALL, 43, blocks, 20]) for _ in range(bench.rounds)]
    share = statistics.median(result["ratio"] for result in rounds)
    beside_call = "a bare blocking gRPC call"
    yield Row.of("a blocking call, 1 caller", TITLES[SMALL], rounds, share, beside_call, lower_is_better=True)


def training(bench: Bench) -> Iterator[Row]:
    """Callers of one run beside an autograd pass, and callers of gradients beside their sum."""
    with program("baselines.autograd_pass", *bench.flags, *bench.data) as autograd:
        samples = 8 if bench.quick else 64
        trained = TrainingBench(
            bench.held, autograd, bench.recordings, bench.data, bench.rounds, bench.seconds, samples=samples
        )
        yield from forward_backward(trained)
        yield from gradients(trained)


PARTS: dict[str, Part] = {
    "callers": callers,
    "connections": connections,
    "streams": streams,
    "realtime": real_time,
    "blocking": blocking,
    "training": training,
    "growth": growth,
    "idle": idle,
    "padding": padding,
}


@contextlib.contextmanager
def _sdk_calls(bench: Bench, model: str, *, connections: int) -> Iterator[Callable[[], Result]]:
    """Yields a round of the SDK's callers, warmed up."""
    opened = sequence_load.sdk_calls(bench.held.server.address, model, bench.callers, connections=connections)
    with bench.held.loop.entered(opened) as calls:
        bench.held.loop.run(sequence_load.closed_loop(calls, bench.recordings, 0.5))
        yield lambda: bench.held.loop.run(sequence_load.closed_loop(calls, bench.recordings, bench.seconds))
