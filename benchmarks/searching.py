"""The most streams that are on time, found by bisection, so that several servers can be searched in turn."""

import statistics
from collections.abc import Callable, Sequence

from measuring import Result

ON_TIME = 100.0  # milliseconds: a chunk's outputs are there before the next chunk


class Search:
    """counts: what is tried, smallest first. measure: one round of so many streams. rounds: the most of each count.

    A count is late where most of its rounds have a 99th percentile of ON_TIME or more.
    """

    def __init__(self, counts: Sequence[int], measure: Callable[[int], Result], rounds: int) -> None:
        self._counts, self._measure, self._rounds = counts, measure, rounds
        self._first, self._end = 0, len(counts)  # the first count that is late is one of these, or there is none
        self._tried: dict[int, list[Result]] = {}
        self.failed = False

    @property
    def done(self) -> bool:
        return self.failed or self._first == self._end

    def step(self) -> None:
        """Tries one count. A round without numbers ends the search: `failed`."""
        middle = (self._first + self._end) // 2
        count = self._counts[middle]
        results: list[Result] = []
        while len(results) < self._rounds and not _decided(results, self._rounds):
            result = self._measure(count)
            if not result:
                self.failed = True
                return
            results.append(result | {"streams": count})
        self._tried[middle] = results
        if statistics.median(result["p99_ms"] for result in results) >= ON_TIME:
            self._end = middle
        else:
            self._first = middle + 1

    @property
    def on_time(self) -> list[Result]:
        """The rounds of the largest count that was on time; none where all were late."""
        return self._tried.get(self._first - 1, [])

    @property
    def late(self) -> list[Result]:
        """The rounds of the smallest count that was late; none where all were on time."""
        return self._tried.get(self._first, [])


def _decided(results: list[Result], rounds: int) -> bool:
    """Whether the rounds that are left could not change which side the median is on."""
    late = sum(result["p99_ms"] >= ON_TIME for result in results)
    return 2 * max(late, len(results) - late) > rounds
