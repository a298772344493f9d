"""The server's switch interval and threads by measurement: every combination under the same work, in turn."""

import contextlib
import itertools
import pathlib
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import report
import seqloom
import sequence_load
import stream_load
from measuring import Loop, Result, interleaved, median
from own_server import own_server
from parts import CHUNK
from workload import LARGE, MODELS, SMALL, TITLES, chunks

INTERVALS = (0.1, 0.5, 1, 2, 5, 20)  # milliseconds
THREADS = (1, 2)
_REAL_TIME = {LARGE: 30, SMALL: 300}  # streams: enough to show who starves whom


@dataclass
class Row:
    """A combination under one kind of work. values: medians of `rounds`."""

    work: str
    model: str
    switch_interval_ms: float
    threads: int
    values: Result
    rounds: list[Result]


def tune(
    loop: Loop, models: pathlib.Path, recordings: list[np.ndarray], callers: int, rounds: int, seconds: float
) -> tuple[list[Row], str]:
    """Returns every combination's numbers, and a table of them beside the fastest of each kind of work."""
    kinds = [(work, model) for work in _WORK for model in MODELS]
    combinations = list(itertools.product(INTERVALS, THREADS))
    with contextlib.ExitStack() as stack:
        measurings = {}
        for interval, threads in combinations:
            options = ("--switch-interval-ms", str(interval), "--threads", str(threads))
            server = stack.enter_context(own_server(models, *options))
            client = loop.run(_client(server.address))
            stack.callback(lambda client=client: loop.run(client.close()))
            for work, model in kinds:
                measurings[work, model, interval, threads] = lambda work=work, client=client, model=model: loop.run(
                    _WORK[work](client, model, recordings, callers, seconds)
                )
        interleaved(measurings, 1)  # warm up
        results = interleaved(measurings, rounds)
    rows = [Row(work, TITLES[model], *how, median(taken), taken) for (work, model, *how), taken in results.items()]
    return rows, _table(rows)


async def _client(address: str) -> seqloom.AsyncClient:
    return seqloom.AsyncClient(address)


async def _callers(
    client: seqloom.AsyncClient, model: str, recordings: list[np.ndarray], count: int, seconds: float
) -> Result:
    async def call(frames: np.ndarray) -> None:
        await client.infer(model, [frames], outputs="labels")

    return await sequence_load.closed_loop([call] * count, recordings, seconds)


async def _streams(
    client: seqloom.AsyncClient, model: str, recordings: list[np.ndarray], count: int, seconds: float
) -> Result:
    return await stream_load.closed_loop(client, model, chunks(recordings, CHUNK), count, seconds)


async def _real_time(
    client: seqloom.AsyncClient, model: str, recordings: list[np.ndarray], _: int, seconds: float
) -> Result:
    return await stream_load.real_time(client, model, chunks(recordings, CHUNK), _REAL_TIME[model], seconds)


_WORK: dict[str, Callable] = {
    "callers, frames/s": _callers,
    "streams, frames/s": _streams,
    "real time, p99 ms": _real_time,
}


def _table(rows: list[Row]) -> str:
    """A line for each combination; its last cell is the mean of its speeds, each as a share of the fastest."""
    kinds = list(dict.fromkeys((row.work, row.model) for row in rows))
    by_combination: dict[tuple[float, int], dict[tuple[str, str], float]] = {}
    for row in rows:
        name = "p99_ms" if row.work.endswith("ms") else "frames_per_second"
        by_combination.setdefault((row.switch_interval_ms, row.threads), {})[row.work, row.model] = row.values[name]
    speeds = [kind for kind in kinds if kind[0].endswith("frames/s")]
    best = {kind: max(values[kind] for values in by_combination.values()) for kind in speeds}
    lines = [["switch interval, ms", "threads", *(f"{work}, {model}" for work, model in kinds), "mean share"]]
    for (interval, threads), values in by_combination.items():
        share = statistics.mean(values[kind] / best[kind] for kind in speeds)
        lines.append([f"{interval:g}", str(threads), *(f"{values[kind]:,.0f}" for kind in kinds), f"{share:.2f}"])
    return report.markdown(lines)
