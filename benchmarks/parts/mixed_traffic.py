"""Live streams, whole recordings and training on one server: each alone, then all at once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

from benchmarks.harness.child_process import program
from benchmarks.harness.rounds import Result, interleaved
from benchmarks.harness.table_rows import Row
from benchmarks.loads import sequence_load, stream_load
from benchmarks.loads.training_workload import TRAINED_TITLES
from benchmarks.loads.workload import LARGE
from benchmarks.setup.server_bench import ServerBench

TRAINERS = 2
_LEAST = 2.0  # seconds of a round, so that the last answers weigh little
_OPS = {"streams": "stream", "callers": "infer", "trainers": "train"}

Results = dict[str, Result]
"""What each kind of callers did in a round."""


def mixed(bench: ServerBench, *, speaking: int = 10, calling: int = 8) -> Iterator[Row]:
    """Streams in real time, callers of whole recordings, if any, and trainers that saturate the server, in a process of
    their own. Each stands beside itself alone: the streams by their p99, the others by their frames/s."""
    loop, seconds = bench.loop, bench.seconds if bench.quick else max(bench.seconds, _LEAST)
    titles = {"streams": f"{speaking} streams in real time"}
    short = {"streams": f"{speaking} streams", "callers": f"{calling} callers", "trainers": f"{TRAINERS} trainers"}
    if calling:
        titles["callers"] = f"whole recordings, {calling} callers"
    titles["trainers"] = f"{TRAINERS} trainers, a run each"
    with (
        program("loads.trainers", bench.server.address, LARGE, TRAINERS, *bench.data) as trainers,
        loop.entered(sequence_load.sdk_calls(bench.server.address, LARGE, calling, connections=1)) as calls,
    ):
        trainers.ask(seconds / 4)  # warm up

        async def speak(others: Callable[[], Awaitable[Result]] | None = None) -> Result:
            return await stream_load.real_time(bench.client, LARGE, bench.chunks(), speaking, seconds, others)

        kinds = {
            "streams": speak,
            "callers": lambda: sequence_load.closed_loop(calls, bench.recordings, seconds),
            "trainers": lambda: asyncio.to_thread(trainers.ask, seconds),
        }

        async def alone(who: str) -> Results:
            return {who: await kinds[who]()}

        async def together() -> Results:
            results: Results = {}

            async def others() -> Result:
                for found in await asyncio.gather(*(alone(who) for who in titles if who != "streams")):
                    results.update(found)
                return {}

            return {"streams": await speak(others)} | results

        def shared(work: Callable[[], Awaitable[Results]]) -> Results:
            results, shares = bench.with_shares(work())
            return {who: result | {"device_share": shares[_OPS[who]]} for who, result in results.items()}

        measurings = {who: lambda who=who: shared(lambda: alone(who)) for who in titles}
        rounds = interleaved(measurings | {"all": lambda: shared(together)}, bench.rounds)
    for all_of, by_themselves in zip(rounds["all"], rounds["trainers"], strict=True):
        left = all_of["trainers"]["frames_per_second"] / by_themselves["trainers"]["frames_per_second"]
        all_of["trainers"]["of_what_streams_leave"] = left / (1 - all_of["streams"]["device_share"])
    for who, title in titles.items():
        one, other = ([each[who] for each in rounds[name]] for name in (who, "all"))
        yield Row.of(title, TRAINED_TITLES[LARGE], one, sweep="mixed", who=who, at={"together": 0})
        company = " and ".join(short[other] for other in titles if other != who)
        row = Row.of(f"{title}, beside {company}", TRAINED_TITLES[LARGE], other, sweep="mixed", who=who)
        row.at = {"together": 1}
        number, told = ("p99_ms", "the p99 alone") if who == "streams" else ("frames_per_second", f"the {who} alone")
        yield row.against(one, number, told)
