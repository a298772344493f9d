"""Live streams, whole recordings and training on one server: each alone, then all at once."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

from benchmarks.harness.rounds import Result, interleaved
from benchmarks.loads import sequence_load, stream_load, training_load
from benchmarks.loads.training_workload import labelled
from benchmarks.loads.workload import LARGE, MODELS, TITLES
from benchmarks.parts.stream_sweeps import CHUNK, streams_told
from benchmarks.setup.sweep_bench import Point, SweepBench, beside, point

SPEAKING, CALLING, TRAINING = 10, 8, 8
_LONGER = 5  # rounds are, so that the last answers weigh little
_OPS = {"streams": "stream", "callers": "infer", "trainers": "train"}
_TITLES = {
    "streams": f"{streams_told(SPEAKING)} in real time",
    "callers": f"whole recordings, {CALLING} callers",
    "trainers": f"forward_backward of {TRAINING} callers of one run, a recording each",
}


def mixed(bench: SweepBench) -> Iterator[Point]:
    """Each stands beside itself alone: the streams' p99, the others' frames/s."""
    held, seconds = bench.held, _LONGER * bench.seconds
    examples = labelled(bench.recordings, MODELS[LARGE])
    with (
        held.loop.entered(sequence_load.sdk_calls(held.server.address, LARGE, CALLING, connections=1)) as calls,
        held.loop.entered(training_load.callers_of_one_run(held.client, LARGE, TRAINING)) as training,
    ):

        async def speak(others: Callable[[], Awaitable[Result]] | None = None) -> Result:
            return await stream_load.real_time(held.client, LARGE, bench.chunks(CHUNK), SPEAKING, seconds, others)

        kinds = {
            "streams": speak,
            "callers": lambda: sequence_load.closed_loop(calls, bench.recordings, seconds),
            "trainers": lambda: sequence_load.closed_loop(training, examples, seconds),
        }

        async def one(who: str) -> dict[str, Result]:
            return {who: await kinds[who]()}

        async def all_three() -> dict[str, Result]:
            results: dict[str, Result] = {}

            async def others() -> Result:
                found = await asyncio.gather(one("callers"), one("trainers"))
                results.update(found[0] | found[1])
                return {}

            results["streams"] = await speak(others)
            return results

        measurings = {who: lambda who=who: _with_shares(bench, one(who)) for who in kinds}
        rounds = interleaved(measurings | {"all": lambda: _with_shares(bench, all_three())}, bench.rounds)
    for who, title in _TITLES.items():
        alone = point("mixed", who, {"together": 0}, title, TITLES[LARGE], [each[who] for each in rounds[who]])
        title += ", all three at once"
        together = point("mixed", who, {"together": 1}, title, TITLES[LARGE], [each[who] for each in rounds["all"]])
        number, told = ("p99_ms", "the p99") if who == "streams" else ("frames_per_second", "the frames/s")
        yield alone
        yield beside(together, alone, number, f"{told} alone")


def _with_shares(bench: SweepBench, work: Coroutine[Any, Any, dict[str, Result]]) -> dict[str, Result]:
    """Runs one round and adds what each kind had of the device; a slice that two kinds share counts for both."""
    before, begun = _device_seconds(bench), time.perf_counter()
    results = bench.held.loop.run(work)
    seconds = time.perf_counter() - begun
    after = _device_seconds(bench)
    return {who: result | {"device_share": (after[who] - before[who]) / seconds} for who, result in results.items()}


def _device_seconds(bench: SweepBench) -> dict[str, float]:
    taken = {who: bench.held.server.metrics(op=op) for who, op in _OPS.items()}
    return {who: samples["seqloom_compute_duration_seconds_sum"] for who, samples in taken.items()}
