"""Whole sequences offered at multiples of the closed loop's peak, whatever becomes of them, beside Triton."""

from collections.abc import Iterator

from benchmarks.harness.child_process import Program
from benchmarks.harness.rounds import Result
from benchmarks.harness.table_rows import Row
from benchmarks.loads import open_loop
from benchmarks.loads.open_loop import Calls
from benchmarks.loads.overload_workload import CALLS, recordings_of
from benchmarks.loads.workload import LARGE, SMALL
from benchmarks.parts.overload.peer import peer
from benchmarks.parts.overload.points import (
    PEAK_SECONDS,
    add_note,
    callers,
    counted,
    factors,
    point,
    quiet,
    summary,
    together,
)
from benchmarks.setup.goals import FROM, GOODPUT, OFFERED, PEAK, REFUSED_MS, WASTED
from benchmarks.setup.server_bench import ServerBench

_PROCESSES = {LARGE: 1, SMALL: 2}  # that send, a connection each: one alone is the bottleneck at 450 steps a call
_SPREAD, _SPREAD_PROCESSES = 8, 2  # connections, and the processes that have them
_SPREAD_FACTORS = (1.0, 3.0)
_TRITON_FACTORS = (0.8, 1.0, 2.0, 3.0, 5.0)


def calls(bench: ServerBench) -> Iterator[Row]:
    """Each network over as few connections as can offer that much, Triton at the same multiples of its own peak, and
    over several connections."""
    for model, network in CALLS.items():
        with callers(bench, model, _SPREAD_PROCESSES) as programs, peer(bench, model) as triton:
            few = programs[: _PROCESSES[model]]
            best = programs[0].ask(["peak", bench.callers, seconds := max(bench.seconds, PEAK_SECONDS)])
            rate = best["answers_per_second"]
            title = f"whole sequences, {bench.callers} callers, closed loop: the peak"
            yield Row.of(title, network, [best])
            if triton:
                yield triton.peak()
            for factor in factors(bench):
                rounds = [_offer(bench, model, few, len(few), factor, rate) for _ in range(bench.rounds)]
                yield _row(f"whole sequences at {factor:g} x", network, factor, rounds)
                if triton and factor in _TRITON_FACTORS:
                    yield triton.offered(factor)
            for factor in _SPREAD_FACTORS[-1:] if bench.quick else _SPREAD_FACTORS:
                rounds = [_offer(bench, model, programs, _SPREAD, factor, rate) for _ in range(bench.rounds)]
                work = f"whole sequences at {factor:g} x, {_SPREAD} connections of {_SPREAD_PROCESSES} processes"
                yield _row(work, network, factor, rounds, who="spread")
            quiet(bench)
            again = programs[0].ask(["peak", bench.callers, seconds])
            yield Row.of(f"{title} once more", network, [again]).against([best], "answers_per_second", PEAK)


def _row(work: str, network: str, factor: float, rounds: list[Result], who: str = "served") -> Row:
    """With what is promised: of what is offered below the peak, of the peak from there on."""
    row = point(work, network, rounds, sweep="overload", who=who, at={"offered": factor})
    add_note(row, missed(row))
    number, row.beside = ("good_share", PEAK) if factor >= 1 else ("good_of_offered", OFFERED)
    row.ratio, row.goal = row.values[number], GOODPUT[row.beside] if factor >= FROM else None
    return row


def missed(row: Row) -> str:
    """Which of the other promises were not kept, in words. Refusals of the small network, whose callers and server
    share the cores, are promised where the server has read the call, which is not seen here."""
    told = [f"wasted more than {WASTED:.0%}"] if row.values["wasted_share"] > WASTED else []
    slow = row.model == CALLS[LARGE] and row.values.get("refused_p99_ms", 0) >= REFUSED_MS
    return "; ".join([*told, f"refusals took {REFUSED_MS:.0f} ms or more"] if slow else told)


def _offer(
    bench: ServerBench, model: str, programs: list[Program], connections: int, factor: float, peak: float
) -> Result:
    """One round, with the share of the device's work that was wasted. peak: calls a second."""
    quiet(bench)
    before, share = counted(bench, model)["steps"], len(programs)
    ask = ["calls", connections // share, factor * peak / share, bench.seconds]
    gone = Calls.joined(together(*((each, [*ask, seed]) for seed, each in enumerate(programs))))
    quiet(bench)
    computed = counted(bench, model)["steps"] - before - connections * len(recordings_of(model)[0])  # but for the first
    return summary(gone, bench.seconds, peak, factor * peak) | {"wasted_share": open_loop.wasted(computed, gone)}
