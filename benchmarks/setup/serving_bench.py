"""What the parts of the benchmark need: a server, its peers, recordings, and how long to measure."""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.harness.child_process import Program
from benchmarks.harness.rounds import Result, observed, ratio
from benchmarks.harness.table_rows import Row
from benchmarks.loads.workload import TITLES, chunks
from benchmarks.peers.launcher import PeerFailed, Triton
from benchmarks.setup.goals import GOALS
from benchmarks.setup.server_setup import Sitting

CHUNK = 10  # frames


@dataclass
class Bench:
    """seconds: of one round. quick: whether little of everything is to be done. alone: the program alone.py.

    tritons: by the size of network, those that were started.
    flags: what servers and programs are started with. data: what programs that choose recordings are, beside that.
    """

    held: Sitting
    alone: Program
    recordings: list[np.ndarray]
    callers: int
    streams: int
    rounds: int
    seconds: float
    quick: bool = False
    flags: tuple[str, ...] = ()
    data: tuple[object, ...] = ()
    tritons: dict[str, Triton] = field(default_factory=dict)

    def watched(self, measure: Callable[[], Result]) -> Result:
        """Runs one round and adds what the server says of it."""
        with observed(self.held.server, extra := {}):
            result = measure()
        return result | extra

    def triton(self, size: str, work: str, count: int, seconds: float) -> Result:
        """One round of Triton's; nothing where none runs, or where it fails at this work or was given up."""
        if size in self.tritons:
            try:
                return self.tritons[size].ask(work, count, seconds)
            except PeerFailed as error:
                print(error, file=sys.stderr)
        return {}

    def crashes(self, size: str, work: str, rounds: Sequence[Result] = ()) -> str:
        """What is to be said of a Triton's crashes at this work, and of those of its rounds that brought no numbers."""
        crashed = self.tritons[size].crashed(work) if size in self.tritons else ""
        missed = sum(not result for result in rounds)
        told = [f"{missed} of {len(rounds)} rounds could not be counted"] if missed else []
        return "; ".join([*told, f"Triton failed: {crashed}"] if crashed else told)

    @functools.cached_property
    def chunks(self) -> list[np.ndarray]:
        return chunks(self.recordings, CHUNK)


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
        whole = all(rounds)
        share = ratio(served, rounds, number) if whole else None
        note = "" if whole else missing
        yield Row.of(title, TITLES[model], served, share, other, GOALS.get((part, model, other)), note=note)
        title = f"{work}, beside Triton"
    if not others:
        yield Row.of(work, TITLES[model], served)


def peer_row(work: str, model: str, rounds: list[Result], note: str) -> Row:
    """Triton's own row; without numbers where not every round brought some. model: the network's title."""
    return Row.of(work, model, rounds, note=note) if all(rounds) else Row(work, model, {}, rounds, note=note)
