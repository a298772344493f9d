"""Streams at the speed of speech in thousands, which a GPU can serve and no one process can feed."""

import asyncio
import contextlib
import os
from collections.abc import Iterator

from benchmarks.harness.capacity_search import ON_TIME
from benchmarks.harness.child_process import program
from benchmarks.harness.rounds import Result
from benchmarks.harness.table_rows import Row
from benchmarks.loads.workload import LARGE, TITLES
from benchmarks.setup.server_bench import CHUNK, ServerBench

_MOST_PROGRAMS = 8  # processes that speak


def real_time(bench: ServerBench) -> Iterator[Row]:
    """More and more streams until they are late."""
    for count in bench.axes["realtime"]:
        result = _speak(bench, count)
        late = result["p99_ms"] >= ON_TIME
        title = f"{count} streams in real time, {CHUNK} frames every 100 ms"
        yield Row.of(title, TITLES[LARGE], [result], None, "late" if late else "on time")
        if late:
            break


def _speak(bench: ServerBench, count: int) -> Result:
    """One round of streams spread over processes: the frames of all, the delays of whichever is latest."""
    processes = min(count, _MOST_PROGRAMS, max(2, (os.cpu_count() or 2) // 2))
    shares = [count // processes + (number < count % processes) for number in range(processes)]
    with contextlib.ExitStack() as stack:
        speakers = [stack.enter_context(program("loads.streamers", bench.server.address, LARGE)) for _ in shares]

        async def together() -> Result:
            asked = zip(speakers, shares, strict=True)
            results = await asyncio.gather(
                *(asyncio.to_thread(speaker.ask, [share, bench.seconds]) for speaker, share in asked)
            )
            worst = {name: max(result[name] for result in results) for name in results[0]}
            return worst | {"frames_per_second": sum(result["frames_per_second"] for result in results)}

        return bench.watched(together())
