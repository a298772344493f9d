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

from benchmarks.harness.child_process import child_process
from benchmarks.harness.rounds import Result
from benchmarks.harness.table_rows import Row
from benchmarks.loads import stream_load
from benchmarks.loads.workload import LARGE, MODELS, SMALL, TITLES
from benchmarks.setup.goals import FEWER, GOALS, IDLE
from benchmarks.setup.server_bench import CHUNK, ServerBench

_MORE_KB = 20  # that an idle stream may hold beside its state
_SETTLE = 0.5  # seconds


def streams(bench: ServerBench) -> Iterator[Row]:
    """Closed loops of more and more streams, in chunks of every size; costs beside the least with fewer streams."""
    sizes = {SMALL: bench.axes["chunks"], LARGE: [CHUNK]}
    rounds: dict[tuple[str, int, int], list[Result]] = defaultdict(list)
    for _ in range(bench.rounds):
        for model, chunk_sizes in sizes.items():
            for count in bench.axes["streams"]:
                with bench.loop.entered(stream_load.opened(bench.client, model, count)) as opened:
                    for size in chunk_sizes:
                        chunks = bench.chunks(size)
                        bench.loop.run(stream_load.answered(opened, chunks, bench.seconds / 8))  # warm up
                        work = stream_load.answered(opened, chunks, bench.seconds)
                        rounds[model, size, count].append(bench.watched(work))
    for model, chunk_sizes in sizes.items():
        for size in chunk_sizes:
            cheapest: Row | None = None
            for count in bench.axes["streams"]:
                taken, at = rounds[model, size, count], {"streams": count, "chunk": size}
                title = f"{streams_told(count)}, chunks of {size}"
                row = Row.of(title, TITLES[model], taken, sweep="streams", who="served", at=at)
                if cheapest is not None:
                    row.against(cheapest.rounds, "us_a_frame", FEWER, GOALS["growth", model, FEWER])
                yield row
                if cheapest is None or row.values["us_a_frame"] < cheapest.values["us_a_frame"]:
                    cheapest = row


def idle(bench: ServerBench) -> Iterator[Row]:
    """What a server holds more for streams that have said something and then wait.

    Of the small network, whose state is next to nothing: a large one's buffers, which come and go, would hide the rest.
    """
    state_kb = 4e-3 * MODELS[SMALL].hidden_size
    for count in bench.axes["idle"]:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(bench.models / SMALL, pathlib.Path(folder) / SMALL)
            with own_server(pathlib.Path(folder), *bench.flags, launch=child_process) as server:
                more = bench.loop.run(_held_by(server, count, bench.chunks()[0]))
        values = {"kb_a_stream": more / 1e3, "state_kb": state_kb}
        row = Row.of(f"{streams_told(count)}, idle", TITLES[SMALL], [values], sweep="idle", at={"streams": count})
        row.ratio, row.beside = values["kb_a_stream"] / (state_kb + _MORE_KB), IDLE
        row.lower_is_better, row.goal, row.note = True, GOALS["idle", SMALL, IDLE], "a single measurement"
        yield row


async def _held_by(server: OwnServer, count: int, frames: np.ndarray) -> float:
    """The server's bytes for each of the streams that come when a quarter of so many are open.

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
            return (await say(others) - before) / len(others)


def streams_told(count: int) -> str:
    return "1 stream" if count == 1 else f"{count:,} streams"
