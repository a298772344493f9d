"""What the parts of the benchmark need: a server, its peers, recordings, and how long to measure."""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import seqloom
from goals import GOALS
from measuring import Loop, Result, observed, ratio
from own_server import OwnServer
from peers.launcher import PeerFailed, Triton
from programs import Program
from rows import Row
from workload import TITLES, chunks

CHUNK = 10  # frames


@dataclass
class Bench:
    """seconds: of one round. alone: the program alone.py. tritons: by the size of network, those that were started."""

    loop: Loop
    server: OwnServer
    client: seqloom.AsyncClient
    alone: Program
    recordings: list[np.ndarray]
    callers: int
    streams: int
    rounds: int
    seconds: float
    tritons: dict[str, Triton] = field(default_factory=dict)

    def watched(self, measure: Callable[[], Result]) -> Result:
        """Runs one round and adds what the server says of it."""
        with observed(self.server, extra := {}):
            result = measure()
        return result | extra

    def triton(self, size: str, work: str, count: int, seconds: float) -> Result:
        """One round of Triton's; nothing where none runs. One that fails is told of, and left out from then on."""
        if size in self.tritons:
            try:
                return self.tritons[size].ask(work, count, seconds)
            except PeerFailed as error:
                print(error, file=sys.stderr)
                self.tritons.pop(size).close()
        return {}

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
