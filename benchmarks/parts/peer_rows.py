"""Rows of work that stands beside Triton: its rounds in turn with Seqloom's, its crashes, its own row."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks.harness.rounds import Result, interleaved
from benchmarks.harness.table_rows import Row
from benchmarks.loads.workload import TITLES
from benchmarks.parts.peer_agreement import running
from benchmarks.peers.launcher import PeerFailed
from benchmarks.setup.goals import GOALS, TRITON
from benchmarks.setup.server_bench import ServerBench

Measure = Callable[[], Result]


def in_turn(
    bench: ServerBench,
    part: str,
    work: tuple[str, str, int],
    size: str,
    served: Mapping[str, Measure],
    others: Mapping[str, Measure],
) -> Iterator[Row]:
    """Yields the rows of each model served, beside the others and Triton, and Triton's; returns the others' rounds.

    work: what the rows call it, what Triton's load does, and with how many callers or streams. size: the network.
    """
    title, kind, count = work
    triton(bench, size, kind, count, bench.seconds / 4)  # warm up
    measurings = dict(served)
    if size in running(bench):
        measurings[TRITON] = lambda: triton(bench, size, kind, count, bench.seconds)
    rounds = interleaved(measurings | others, bench.rounds)
    note = crashes(bench, size, kind, rounds.get(TRITON, ()))
    stand = {name: rounds[name] for name in (*others, TRITON) if name in rounds}
    for model in served:
        yield from beside(part, title, model, "frames_per_second", rounds[model], stand, note)
    if TRITON in stand:
        yield peer_row(f"{TRITON}: {title}", TITLES[size], rounds[TRITON], note)
    return {name: rounds[name] for name in others}


def triton(bench: ServerBench, size: str, work: str, count: int, seconds: float) -> Result:
    """One round of Triton's; nothing where none runs, or where it fails at this work or was given up."""
    if size in running(bench):
        try:
            return running(bench)[size].ask(work, count, seconds)
        except PeerFailed as error:
            print(error, file=sys.stderr)
    return {}


def crashes(bench: ServerBench, size: str, work: str, rounds: Sequence[Result] = ()) -> str:
    """What is to be said of a Triton's crashes at this work, and of those of its rounds that brought no numbers."""
    crashed = running(bench)[size].crashed(work) if size in running(bench) else ""
    missed = sum(not result for result in rounds)
    told = [f"{missed} of {len(rounds)} rounds could not be counted"] if missed else []
    return "; ".join([*told, f"Triton failed: {crashed}"] if crashed else told)


def beside(
    part: str,
    work: str,
    model: str,
    number: str,
    served: list[Result],
    others: Mapping[str, list[Result]],
    missing: str = "",
) -> Iterator[Row]:
    """Yields Seqloom's row, and another for each further one of the `others`: the rounds of what stands beside it.

    number: the name of the number that is compared. missing: the note of a row that has no ratio, since not every round
    of the other brought numbers.
    """
    title = work
    for other, rounds in others.items():
        goal = GOALS.get((part, model, other))
        row = Row.of(title, TITLES[model], served, None, other, goal, note=missing)
        if all(rounds):
            row.against(rounds, number, other, goal).note = ""
        yield row
        title = f"{work}, beside Triton"
    if not others:
        yield Row.of(work, TITLES[model], served)


def peer_row(work: str, model: str, rounds: list[Result], note: str) -> Row:
    """Triton's own row; without numbers where not every round brought some. model: the network's title."""
    return Row.of(work, model, rounds, note=note) if all(rounds) else Row(work, model, {}, rounds, note=note)
