"""A modest caller, on a connection of its own, alone and beside one that floods the server."""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from benchmarks.harness.child_process import Program
from benchmarks.harness.rounds import Result
from benchmarks.harness.table_rows import Row
from benchmarks.loads.open_loop import GOOD, REFUSED, UNCOUNTED, Calls, quantiles
from benchmarks.loads.overload_workload import CALLS
from benchmarks.parts.overload.points import add_note, callers, counted, point, quiet, together
from benchmarks.setup.server_bench import ServerBench

RATE = 10  # calls a second of the modest one
FLOODS = (256, 4000)  # calls that are under way at once
_LONGER = 2  # times a round of others, since there are few calls to count
_SLICES = 2  # that the modest one may wait for because of others


def neighbours(bench: ServerBench) -> Iterator[Row]:
    """The modest caller's delays alone, and beside each flood; and what the flood itself gets."""
    seconds = _LONGER * bench.seconds
    for model, network in CALLS.items():
        with callers(bench, model, 2) as (modest, flood):
            quiet(bench)
            modest.ask(["steady", RATE, 0.2])  # warms up
            alone = [_result(Calls(**modest.ask(["steady", RATE, seconds])), {}) for _ in range(bench.rounds)]
            row = point(f"{RATE} calls a second, alone", network, alone, sweep="neighbours", who="alone")
            yield row
            for count in FLOODS[:1] if bench.quick else FLOODS:
                rounds = [_beside(bench, model, modest, flood, count, seconds) for _ in range(bench.rounds)]
                work = f"{RATE} calls a second beside {count:,} calls under way"
                beside = point(work, network, rounds, sweep="neighbours", who=f"{count}")
                allowed = row.values["p99_ms"] + _SLICES * beside.values["slice_ms"]
                beside.ratio, beside.goal, beside.lower_is_better = beside.values["p99_ms"] / allowed, 1.0, True
                beside.beside = f"the p99 alone and {_SLICES} slices"
                if beside.values["refused"] or beside.values["lost"]:
                    add_note(beside, "some were refused or lost")
                yield beside


def _beside(bench: ServerBench, model: str, modest: Program, flood: Program, count: int, seconds: float) -> Result:
    quiet(bench)
    before, begun = counted(bench, model), time.perf_counter()
    ahead = UNCOUNTED + seconds
    gone, told = together((modest, ["steady", RATE, seconds]), (flood, ["flood", count, ahead]))
    after, took = counted(bench, model), time.perf_counter() - begun
    slices = max(after["slices"] - before["slices"], 1)
    return _result(
        Calls(**gone),
        {
            "slice_ms": 1e3 * (after["seconds"] - before["seconds"]) / slices,
            "flood_per_second": Counter(told)[GOOD] / ahead,
            "flood_refused_per_second": Counter(told)[REFUSED] / ahead,
            "took_seconds": took,
        },
    )


def _result(gone: Calls, more: dict[str, Any]) -> Result:
    """Of the calls that count: the delays of all that were not refused; one that was lost waited for all its time."""
    counting = [call for call in zip(*gone.columns(), strict=True) if call[0] >= UNCOUNTED]
    refused = sum(call[2] == REFUSED for call in counting)
    lost = sum(call[2] not in (GOOD, REFUSED) for call in counting)
    delays = quantiles([call[3] for call in counting if call[2] != REFUSED])
    late = quantiles(gone.behind, "sent_late_", medians=False)
    return {"calls": len(counting), "refused": refused, "lost": lost} | delays | late | more
