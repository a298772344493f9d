"""The parts of the benchmark with whole sequences: over one connection, with a connection each, by blocking calls."""

import contextlib
import functools
import statistics
from collections.abc import Iterator

from benchmarks.harness.child_process import program
from benchmarks.harness.rounds import Result, interleaved
from benchmarks.harness.table_rows import Row
from benchmarks.loads import sequence_load
from benchmarks.loads.workload import MODELS, SIZES, SMALL, TITLES
from benchmarks.parts.peer_rows import Measure, beside, in_turn
from benchmarks.setup.goals import ALONE, ECHO
from benchmarks.setup.server_bench import ServerBench


def callers(bench: ServerBench) -> Iterator[Row]:
    """Whole recordings over one shared connection, beside Triton and the network alone."""
    work = f"whole recordings, {bench.callers} callers", "callers", bench.callers
    for size, models in SIZES.items():
        alone = functools.partial(bench.ask, "baselines.network_alone", "labels", size, bench.callers)
        alone(0)  # warm up
        with contextlib.ExitStack() as stack:
            served = {model: stack.enter_context(_sdk_calls(bench, model, connections=1)) for model in models}
            others = {ALONE: functools.partial(alone, bench.seconds)}
            rounds = yield from in_turn(bench, "callers", work, size, served, others)
        yield Row.of(f"{ALONE}, batches of {bench.callers}", TITLES[size], rounds[ALONE])


def connections(bench: ServerBench) -> Iterator[Row]:
    """Whole recordings with a connection each, beside gRPC's bare echo."""
    size = sequence_load.answer_bytes_of(MODELS[SMALL].hidden_size)
    with (
        program("baselines.grpc_echo") as echo,
        _sdk_calls(bench, SMALL, connections=bench.callers) as serve,
        bench.loop.entered(sequence_load.echo_calls(echo.greeting[0], size, bench.callers)) as calls,
    ):

        def echoed() -> Result:
            return bench.loop.run(sequence_load.closed_loop(calls, bench.recordings, bench.seconds))

        rounds = interleaved({SMALL: serve, ECHO: echoed}, bench.rounds)
    title = f"whole recordings, {bench.callers} callers, a connection each"
    yield from beside("connections", title, SMALL, "answers_per_second", rounds[SMALL], {ECHO: rounds[ECHO]})
    yield Row.of("a bare grpc.aio unary echo of the same bytes", TITLES[SMALL], rounds[ECHO])


def blocking(bench: ServerBench) -> Iterator[Row]:
    """A blocking call, beside the bare gRPC call of the same frames."""
    blocks = max(10, round(8 * bench.seconds))
    with program("baselines.blocking_call") as caller:
        rounds = [caller.ask([bench.server.address, SMALL, 43, blocks, 20]) for _ in range(bench.rounds)]
    share = statistics.median(result["ratio"] for result in rounds)
    other = "a bare blocking gRPC call"
    yield Row.of("a blocking call, 1 caller", TITLES[SMALL], rounds, share, other, lower_is_better=True)


@contextlib.contextmanager
def _sdk_calls(bench: ServerBench, model: str, *, connections: int) -> Iterator[Measure]:
    """Yields a round of the SDK's callers, warmed up."""
    opened = sequence_load.sdk_calls(bench.server.address, model, bench.callers, connections=connections)
    with bench.loop.entered(opened) as calls:
        bench.loop.run(sequence_load.closed_loop(calls, bench.recordings, 0.5))
        yield lambda: bench.watched(sequence_load.closed_loop(calls, bench.recordings, bench.seconds))
