"""The parts of the benchmark, each a row or more: what is measured, and beside what."""

import bisect
import contextlib
import functools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import seqloom
import sequence_load
import stream_load
from measuring import Loop, Result, interleaved, observed, ratio
from own_server import OwnServer
from programs import Program, program
from rows import Part, Row
from workload import LARGE, MODELS, SMALL, TITLES, chunks

CHUNK = 10  # frames
ON_TIME = 100.0  # milliseconds: a chunk's outputs are there before the next chunk
_STREAMS = {
    LARGE: [10, 20, 30, 40, 50, 60, 70, 80, 100, 120, 150, 200],
    SMALL: [50, 100, 200, 300, 400, 500, 600, 700, 800, 1000],
}


@dataclass
class Bench:
    """What the parts need. seconds: of one round. alone: the program alone.py."""

    loop: Loop
    server: OwnServer
    client: seqloom.AsyncClient
    alone: Program
    recordings: list[np.ndarray]
    callers: int
    streams: int
    rounds: int
    seconds: float

    def watched(self, measure: Callable[[], Result]) -> Result:
        """Runs one round and adds what the server says of it."""
        with observed(self.server, extra := {}):
            result = measure()
        return result | extra

    @functools.cached_property
    def chunks(self) -> list[np.ndarray]:
        return chunks(self.recordings, CHUNK)


def callers(bench: Bench) -> Iterator[Row]:
    """Whole recordings over one shared connection, beside the network alone."""
    for model in MODELS:
        bench.alone.ask([model, bench.callers, 0])  # warm up
        with _sdk_calls(bench, model, connections=1) as serve:
            rounds = interleaved(
                {
                    "served": lambda serve=serve: bench.watched(serve),
                    "alone": lambda model=model: bench.alone.ask([model, bench.callers, bench.seconds]),
                },
                bench.rounds,
            )
        share = ratio(rounds["served"], rounds["alone"], "frames_per_second")
        title = f"whole recordings, {bench.callers} callers"
        yield _row(title, model, rounds["served"], share, "the network alone")
        yield _row(f"the network alone, batches of {bench.callers}", model, rounds["alone"])


def connections(bench: Bench) -> Iterator[Row]:
    """Whole recordings with a connection each, beside gRPC's bare echo."""
    size = sequence_load.answer_bytes_of(MODELS[SMALL].hidden_size)
    with (
        program("echo") as echo,
        _sdk_calls(bench, SMALL, connections=bench.callers) as serve,
        bench.loop.entered(sequence_load.echo_calls(echo.greeting, size, bench.callers)) as echo_calls,
    ):
        rounds = interleaved(
            {
                "served": lambda: bench.watched(serve),
                "echo": lambda: bench.loop.run(sequence_load.closed_loop(echo_calls, bench.recordings, bench.seconds)),
            },
            bench.rounds,
        )
    share = ratio(rounds["served"], rounds["echo"], "answers_per_second")
    title = f"whole recordings, {bench.callers} callers, a connection each"
    yield _row(title, SMALL, rounds["served"], share, "the echo")
    yield _row("a bare grpc.aio unary echo of the same bytes", SMALL, rounds["echo"])


def streams(bench: Bench) -> Iterator[Row]:
    """Live streams as fast as they are answered."""
    rounds = interleaved(
        {
            model: lambda model=model: bench.watched(
                lambda: bench.loop.run(
                    stream_load.closed_loop(bench.client, model, bench.chunks, bench.streams, bench.seconds)
                )
            )
            for model in MODELS
        },
        bench.rounds,
    )
    for model in MODELS:
        yield _row(f"{bench.streams} streams, chunks of {CHUNK} frames, closed loop", model, rounds[model])


def real_time(bench: Bench) -> Iterator[Row]:
    """The most streams at the speed of speech whose 99th percentile is on time: by bisection, a median a step."""
    for model in MODELS:
        counts = _STREAMS[model]
        tried: dict[int, list[Result]] = {}

        def late(count: int, model: str = model, tried: dict[int, list[Result]] = tried) -> bool:
            tried[count] = [
                bench.watched(
                    lambda: bench.loop.run(
                        stream_load.real_time(bench.client, model, bench.chunks, count, bench.seconds)
                    )
                )
                for _ in range(min(bench.rounds, 3))
            ]
            return statistics.median(result["p99_ms"] for result in tried[count]) >= ON_TIME

        first_late = bisect.bisect_left(counts, True, key=late)
        for count in sorted(tried):
            if count in counts[max(0, first_late - 1) : first_late + 1]:
                title = f"{count} streams in real time, {CHUNK} frames every 100 ms"
                verdict = "late" if counts.index(count) >= first_late else "on time"
                yield _row(title, model, tried[count], None, verdict)


def blocking(bench: Bench) -> Iterator[Row]:
    """A blocking call, beside the bare gRPC call of the same frames."""
    blocks = max(10, round(8 * bench.seconds))
    with program("blocking") as caller:
        rounds = [caller.ask([bench.server.address, SMALL, 43, blocks, 20]) for _ in range(bench.rounds)]
    share = statistics.median(result["ratio"] for result in rounds)
    yield _row("a blocking call, 1 caller", SMALL, rounds, share, "a bare blocking gRPC call")


PARTS: dict[str, Part] = {
    "callers": callers,
    "connections": connections,
    "streams": streams,
    "realtime": real_time,
    "blocking": blocking,
}


def _row(work: str, model: str, rounds: list[Result], share: float | None = None, beside: str = "") -> Row:
    return Row.of(work, TITLES[model], rounds, share, beside)


@contextlib.contextmanager
def _sdk_calls(bench: Bench, model: str, *, connections: int) -> Iterator[Callable[[], Result]]:
    """Yields a round of the SDK's callers, warmed up."""
    opened = sequence_load.sdk_calls(bench.server.address, model, bench.callers, connections=connections)
    with bench.loop.entered(opened) as calls:
        bench.loop.run(sequence_load.closed_loop(calls, bench.recordings, 0.5))
        yield lambda: bench.loop.run(sequence_load.closed_loop(calls, bench.recordings, bench.seconds))
