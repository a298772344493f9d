"""Live streams, whole recordings and training on one server: each alone, then all at once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

from benchmarks.harness.rounds import Result, interleaved
from benchmarks.harness.table_rows import Row
from benchmarks.loads import sequence_load, stream_load, training_load
from benchmarks.loads.workload import LARGE, TITLES
from benchmarks.parts.stream_sweeps import streams_told
from benchmarks.setup.server_bench import ServerBench

SPEAKING, CALLING, TRAINING = 10, 8, 8
_LONGER = 5  # rounds are, so that the last answers weigh little
_OPS = {"streams": "stream", "callers": "infer", "trainers": "train"}
_TITLES = {
    "streams": f"{streams_told(SPEAKING)} in real time",
    "callers": f"whole recordings, {CALLING} callers",
    "trainers": f"forward_backward of {TRAINING} callers of one run, a recording each",
}


def mixed(bench: ServerBench) -> Iterator[Row]:
    """Each stands beside itself alone: the streams' p99, the others' frames/s."""
    loop, seconds = bench.loop, _LONGER * bench.seconds
    with (
        loop.entered(sequence_load.sdk_calls(bench.server.address, LARGE, CALLING, connections=1)) as calls,
        loop.entered(training_load.callers_of_one_run(bench.client, LARGE, TRAINING)) as training,
    ):

        async def speak(others: Callable[[], Awaitable[Result]] | None = None) -> Result:
            return await stream_load.real_time(bench.client, LARGE, bench.chunks(), SPEAKING, seconds, others)

        kinds = {
            "streams": speak,
            "callers": lambda: sequence_load.closed_loop(calls, bench.recordings, seconds),
            "trainers": lambda: sequence_load.closed_loop(training, bench.examples(LARGE), seconds),
        }

        async def one(who: str) -> dict[str, Result]:
            return {who: await kinds[who]()}

        async def all_three() -> dict[str, Result]:
            results: dict[str, Result] = {}

            async def others() -> Result:
                found = await asyncio.gather(one("callers"), one("trainers"))
                results.update(found[0] | found[1])
                return {}

            return {"streams": await speak(others)} | results

        def shared(work: Callable[[], Awaitable[dict[str, Result]]]) -> dict[str, Result]:
            results, shares = bench.with_shares(work())
            return {who: result | {"device_share": shares[_OPS[who]]} for who, result in results.items()}

        measurings = {who: lambda who=who: shared(lambda: one(who)) for who in kinds}
        rounds = interleaved(measurings | {"all": lambda: shared(all_three)}, bench.rounds)
    for who, title in _TITLES.items():
        alone, together = ([each[who] for each in rounds[name]] for name in (who, "all"))
        number, told = ("p99_ms", "the p99") if who == "streams" else ("frames_per_second", "the frames/s")
        yield Row.of(title, TITLES[LARGE], alone, sweep="mixed", who=who, at={"together": 0})
        row = Row.of(f"{title}, all three at once", TITLES[LARGE], together, sweep="mixed", who=who, at={"together": 1})
        yield row.against(alone, number, f"{told} alone")
