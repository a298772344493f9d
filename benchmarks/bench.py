"""What the parts of the benchmark need: a server, its peers, recordings, and how long to measure."""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from goals import GOALS
from measuring import Result, observed, ratio
from peers.launcher import PeerFailed, Triton
from programs import Program
from rows import Row
from sitting import Sitting
from workload import TITLES, chunks

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
        """One round of Triton's; nothing where none runs, or where it crashes again and again at this work."""
        if size in self.tritons:
            try:
                return self.tritons[size].ask(work, count, seconds)
            except PeerFailed as error:
                print(error, file=sys.stderr)
        return {}

    def crashes(self, size: str, work: str) -> str:
        """What is to be said of a Triton's crashes at this work; nothing where there were none."""
        told = self.tritons[size].crashed(work) if size in self.tritons else ""
        return f"Triton crashed: {told}" if told else ""

    @functools.cached_property
    def chunks(self) -> list[np.ndarray]:
        return chunks(self.recordings, CHUNK)


def beside(
    part: str, work: str, model: str, number: str, served: list[Result], others: Mapping[str, list[Result]]
) -> Iterator[Row]:
    """Yields Seqloom's row, and another for each further one of the `others`: the rounds of what stands beside it.

    number: the name of the number that is compared.
    """
    title = work
    for other, rounds in others.items():
        share = ratio(served, rounds, number)
        yield Row.of(title, TITLES[model], served, share, other, GOALS.get((part, model, other)))
        title = f"{work}, beside Triton"
    if not others:
        yield Row.of(work, TITLES[model], served)


def measured_wholly(rounds: Mapping[str, list[Result]], names: tuple[str, ...]) -> dict[str, list[Result]]:
    """Those of these names that have numbers of every round."""
    return {name: rounds[name] for name in names if rounds.get(name) and all(rounds[name])}
