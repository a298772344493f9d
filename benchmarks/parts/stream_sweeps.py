"""Sweeps of live streams: over streams and chunks, and what idle ones hold."""

import asyncio
import pathlib
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import psutil
import seqloom
from own_server import OwnServer, own_server

from benchmarks.harness.rounds import Result
from benchmarks.loads import stream_load
from benchmarks.loads.workload import LARGE, MODELS, SMALL, TITLES
from benchmarks.setup.goals import FEWER, GOALS, IDLE
from benchmarks.setup.sweep_bench import Point, SweepBench, beside, point

CHUNK = 10  # frames
_MORE_KB = 20  # that an idle stream may hold beside its state
_SETTLE = 0.5  # seconds


def streams(bench: SweepBench) -> Iterator[Point]:
    """Closed loops of more and more streams, in chunks of every size; costs beside the least with fewer streams."""
    sizes = {SMALL: bench.axes["chunks"], LARGE: [CHUNK]}
    rounds: dict[tuple[str, int, int], list[Result]] = defaultdict(list)
    for _ in range(bench.rounds):
        for model, chunk_sizes in sizes.items():
            for count in bench.axes["streams"]:
                with bench.held.loop.entered(stream_load.opened(bench.held.client, model, count)) as opened:
                    for size in chunk_sizes:
                        chunks = bench.chunks(size)
                        bench.held.loop.run(stream_load.answered(opened, chunks, bench.seconds / 8))  # warm up
                        work = stream_load.answered(opened, chunks, bench.seconds)
                        rounds[model, size, count].append(bench.watched(work))
    for model, chunk_sizes in sizes.items():
        for size in chunk_sizes:
            cheapest: Point | None = None
            for count in bench.axes["streams"]:
                title = f"{streams_told(count)}, chunks of {size}"
                at = {"streams": count, "chunk": size}
                one = point("streams", "served", at, title, TITLES[model], rounds[model, size, count])
                if cheapest is not None:
                    beside(one, cheapest, "us_a_frame", FEWER)
                    one.goal = GOALS["growth", model, FEWER]
                yield one
                if cheapest is None or one.values["us_a_frame"] < cheapest.values["us_a_frame"]:
                    cheapest = one


def idle(bench: SweepBench) -> Iterator[Point]:
    """What a server holds more for streams that have said something and then wait.

    Of the small network, whose state is next to nothing: a large one's buffers, which come and go, would hide the rest.
    """
    state_kb = 4e-3 * MODELS[SMALL].hidden_size
    for count in bench.axes["idle"]:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(bench.held.models / SMALL, pathlib.Path(folder) / SMALL)
            with own_server(pathlib.Path(folder), *bench.flags) as server:
                before, more = bench.held.loop.run(_held_by(server, count, bench.chunks(CHUNK)[0]))
        values = {"before_mb": before / 1e6, "kb_a_stream": more / 1e3, "state_kb": state_kb}
        one = point("idle", "served", {"streams": count}, f"{streams_told(count)}, idle", TITLES[SMALL], [values])
        one.ratio, one.beside = values["kb_a_stream"] / (state_kb + _MORE_KB), IDLE
        one.lower_is_better, one.goal = True, GOALS["idle", SMALL, IDLE]
        one.note = "a single measurement"
        yield one


async def _held_by(server: OwnServer, count: int, frames: np.ndarray) -> tuple[int, float]:
    """The server's bytes with a quarter of so many open streams, and for each stream that came then.

    Each has had outputs. The first quarter fills what the start had left free.
    """

    async def say(streams: list[seqloom.AsyncStream]) -> int:
        for stream in streams:  # one after the other: what a crowd of messages takes is not theirs
            await stream.send(frames)
            await stream.receive()
        await asyncio.sleep(_SETTLE)
        taken = psutil.Process(server.pid).memory_info()
        return taken.rss - getattr(taken, "shared", 0)  # without pages of files, which come and go

    async with (
        seqloom.AsyncClient(server.address) as client,
        stream_load.opened(client, SMALL, count // 4) as first,
    ):
        before = await say(first)
        async with stream_load.opened(client, SMALL, count - len(first)) as others:
            return before, (await say(others) - before) / len(others)


def streams_told(count: int) -> str:
    return "1 stream" if count == 1 else f"{count:,} streams"
