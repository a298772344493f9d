"""The most streams that are on time: guessed by bisection, then walked to by medians, round by round, so that several
servers can be searched in turn."""

import statistics
from collections.abc import Callable, Sequence

from benchmarks.harness.rounds import Result

ON_TIME = 100.0  # milliseconds: a chunk's outputs are there before the next chunk


class Search:
    """counts: what is tried, smallest first. measure: one round of so many streams. rounds: of each count that decides.

    A bisection with one round a count makes a guess. From there on each count has all its rounds, up or down one by
    one, until a count is on time and the next is late: where the median of its 99th percentiles is ON_TIME or more. The
    rounds of the guess count for nothing, since the bisection ended where it did because of them. A count is out of
    reach where a round of it brings no numbers.
    """

    def __init__(self, counts: Sequence[int], measure: Callable[[int], Result], rounds: int) -> None:
        self._counts, self._measure, self._rounds = counts, measure, rounds
        self._first, self._end = 0, len(counts)  # the first count that is late is one of these, or there is none
        self._beyond = len(counts)  # the first count that is out of reach
        self._at: int | None = None  # the count that is walked on; none before the guess
        self._taken: dict[int, list[Result]] = {}  # of the walk
        self.done = not counts

    def round(self) -> None:
        """Takes one round of one count."""
        if self._at is None:
            self._guess()
        else:
            self._walk(self._at)

    def _guess(self) -> None:
        middle = (self._first + self._end) // 2
        result = self._measure(self._counts[middle])
        if not result:
            self._beyond = middle
        if not result or result["p99_ms"] >= ON_TIME:
            self._end = middle
        else:
            self._first = middle + 1
        if self._first == self._end:
            self._go_to(max(self._first - 1, 0))

    def _walk(self, at: int) -> None:
        result = self._measure(self._counts[at])
        if not result:
            self._taken.pop(at, None)
            self._beyond = at
            self._go_to(at - 1)
            return
        taken = self._taken.setdefault(at, [])
        taken.append(result | {"streams": self._counts[at]})
        if len(taken) == self._rounds:
            self._go_to(at - 1 if _late(taken) else at + 1)

    def _go_to(self, at: int) -> None:
        """Goes on with that count, unless it is known, out of reach, or none."""
        self._at = at
        self.done = at in self._taken or not 0 <= at < self._beyond

    @property
    def on_time(self) -> list[Result]:
        """The rounds of the largest count that was on time; none where all were late."""
        return self._taken[max(found)] if (found := self._known(late=False)) else []

    @property
    def late(self) -> list[Result]:
        """The rounds of the smallest count that was late; none where all were on time, or the next out of reach."""
        return self._taken[min(found)] if (found := self._known(late=True)) else []

    @property
    def out_of_reach(self) -> int | None:
        """The count that brought no numbers and so ended the search; none where one that was late did."""
        return self._counts[self._beyond] if self._beyond < len(self._counts) and not self.late else None

    def _known(self, *, late: bool) -> list[int]:
        return [index for index, taken in self._taken.items() if _late(taken) == late]


def _late(rounds: list[Result]) -> bool:
    return statistics.median(result["p99_ms"] for result in rounds) >= ON_TIME
