"""What a benchmark's part yields: the lines of its table."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from sys import stderr
from typing import Any, Self

from benchmarks.harness.rounds import Result, median, ratio


@dataclass
class Row:
    """One line of the table. values: medians of `rounds`. ratio: to what stands beside it, `beside`.

    goal: what the ratio is to be at least, where something was promised. lower_is_better: of the ratio, whose goal is
    then the most that it is to be. note: what is to be known of the row beside its numbers.
    Of a sweep's point also: sweep: its name. who: whose numbers they are, such as "served" or "alone". at: where on
    which axes it stands.
    """

    work: str
    model: str
    values: Result
    rounds: list[Result] = field(repr=False)
    ratio: float | None = None
    beside: str = ""
    goal: float | None = None
    lower_is_better: bool = False
    note: str = ""
    sweep: str = ""
    who: str = ""
    at: dict[str, float] | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the goal was reached; None where there is none, or nothing to hold against it."""
        if self.goal is None or self.ratio is None:
            return None
        return self.ratio <= self.goal if self.lower_is_better else self.ratio >= self.goal

    @classmethod
    def of(cls, work: str, model: str, rounds: list[Result], *compared: Any, **more: Any) -> Self:
        """Its values are the medians of the rounds; the other arguments are fields, from `ratio` on."""
        return cls(work, model, median(rounds), rounds, *compared, **more)

    def against(self, others: list[Result], number: str, beside: str, goal: float | None = None) -> Self:
        """Gives it the ratio of a number of its rounds to that of the others', and returns it. More is better of rates
        alone."""
        self.ratio, self.beside, self.goal = ratio(self.rounds, others, number), beside, goal
        self.lower_is_better = not number.endswith("_per_second")
        return self


Part = Callable[[Any], Iterator[Row]]


def measured(parts: Mapping[str, Part], names: Sequence[str], bench: Any) -> list[Row]:
    """Runs the parts of these names, and tells of each row when it is there, and how long each part took."""
    rows = []
    for name in names:
        begun = time.perf_counter()
        for row in parts[name](bench):
            rows.append(row)
            shown = ", ".join(f"{key} {value:.4g}" for key, value in row.values.items())
            print(f"{row.work}, {row.model}: {shown}", file=stderr, flush=True)
        print(f"{name}: {time.perf_counter() - begun:.0f} s", file=stderr, flush=True)
    return rows
