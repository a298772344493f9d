"""Live streams in real time, more and more of them: who is admitted, who refused, and what those admitted wait."""

from collections.abc import Iterator

from benchmarks.harness.capacity_search import Search
from benchmarks.harness.child_process import Program
from benchmarks.harness.rounds import Result
from benchmarks.harness.table_rows import Row
from benchmarks.loads import live_offer
from benchmarks.loads.live_offer import Group, Spoken
from benchmarks.loads.workload import MODELS, TITLES
from benchmarks.parts.overload.points import add_note, callers, factors, point, quiet
from benchmarks.parts.streams import COUNTS, HASTE
from benchmarks.setup.goals import ADMITTED, FROM, SLOWED
from benchmarks.setup.server_bench import ServerBench

_OPENING = 1.0  # seconds in which the streams of a group come
_SEARCHED, _SHARE = 0.5, 0.6  # the same in the search for the count that is on time, and its share of a round
_SETTLED = 0.5  # seconds from then until chunks count


def streams(bench: ServerBench) -> Iterator[Row]:
    """Multiples of the count that is on time; then streams without a rate that come where those with one are."""
    for model, network in TITLES.items():
        if model not in MODELS:
            continue
        with callers(bench, model) as (program,):
            most = yield from _capacity(bench, network, program)
            first, before = round(FROM * most), None
            for factor in factors(bench):
                count = max(1, round(factor * most))
                rounds = [
                    _offer(bench, program, [Group(count, 0.0, _OPENING, True)], first) for _ in range(bench.rounds)
                ]
                row = _row(f"streams at {factor:g} x", network, factor, rounds, most)
                before = row if factor == FROM else before
                yield _against(row, before)
            groups = [Group(first, 0.0, _OPENING, True), Group(most, _OPENING, _OPENING, False)]
            rounds = [_offer(bench, program, groups, first) for _ in range(bench.rounds)]
            work = f"streams at {FROM:g} x with a rate, then {most} more without one"
            row = point(work, network, rounds, sweep="overload-unrated")
            yield _against(row, before)


def _capacity(bench: ServerBench, network: str, program: Program) -> Iterator[Row]:
    """Yields the row of the most streams without a rate that are on time; returns how many these are."""
    model = next(name for name, title in TITLES.items() if title == network)

    def realtime(count: int) -> Result:
        return _offer(bench, program, [Group(count, 0.0, _SEARCHED, False)], count, _SHARE)

    counts = COUNTS[model][::HASTE] if bench.quick else COUNTS[model]
    search = Search(counts, realtime, bench.rounds)
    while not search.done:
        search.round()
    found = search.on_time or [{"streams": counts[0]}]
    yield point("most streams in real time with p99 under 100 ms", network, found, beside="on time")
    return int(found[0]["streams"])


def _offer(bench: ServerBench, program: Program, groups: list[Group], first: int, share: float = 1.0) -> Result:
    """One round. first: how many of the streams were there first. share: of a round's seconds."""
    quiet(bench)
    settled = groups[-1].comes + groups[-1].within + _SETTLED
    gone = program.ask(["streams", groups, settled, share * bench.seconds])
    return live_offer.summary([Spoken(**each) for each in gone], first)


def _row(work: str, network: str, factor: float, rounds: list[Result], most: int) -> Row:
    row = point(work, network, rounds, sweep="overload-streams", who="served", at={"offered": factor})
    row.values["opened_share"] = row.values["opened"] / most
    for each in row.rounds:
        each["opened_share"] = each["opened"] / most
    if factor >= 1 and row.values["opened_share"] < ADMITTED:
        add_note(row, f"less than {ADMITTED:g} of those on time admitted")
    return row


def _against(row: Row, before: Row | None) -> Row:
    """Beside the p99 at FROM of the capacity: of those admitted, or of those that were there first."""
    if before is None or row is before:
        return row
    number = "p99_ms" if row.at else "first_p99_ms"
    if number in row.values:
        row.ratio, row.goal = row.values[number] / before.values["p99_ms"], SLOWED
        row.beside, row.lower_is_better = f"their p99 at {FROM:g} x", True
    return row
