"""Chooses the class of work to run next: the most urgent one, unless another is owed device time."""

from collections.abc import Collection, Mapping, Sequence

from seqloom_server.engine.core.sequence import Op


class FairShares:
    """The device time that each class is owed, in seconds.

    shares: the fraction of device time guaranteed to each class while it has work. quantum: seconds, about a slice; a
    class that is owed as much goes first.
    """

    def __init__(self, shares: Mapping[Op, float], quantum: float) -> None:
        self._shares = shares
        self._quantum = quantum
        self._owed = dict.fromkeys(Op, 0.0)

    def choose(self, waiting: Sequence[Op]) -> Op | None:
        """Returns the class to run. waiting: the classes that have work, most urgent first; None if there are none."""
        due = [op for op in waiting if self._owed[op] >= self._quantum]
        if due:
            return max(due, key=self._owed.__getitem__)
        return waiting[0] if waiting else None

    def account(self, used: Mapping[Op, float], waiting: Collection[Op]) -> None:
        """Accounts for the seconds that each class used of a slice. A class without work is owed nothing; no class is
        owed more than two quanta, so that one long slice is not followed by many of another class."""
        total = sum(used.values())
        for op in self._owed:
            owed = self._owed[op] + self._shares[op] * total - used.get(op, 0.0)
            self._owed[op] = min(max(owed, 0.0), 2 * self._quantum) if op in waiting else 0.0
