"""Which class of work is next: the most urgent one that waits, unless another has not had what it is owed."""

from collections.abc import Collection, Mapping, Sequence

from seqloom_server.engine.core.sequence import Op


class FairShares:
    """The device time that each class is owed.

    shares: per class, the part of the device that it gets at least while it has work. quantum: seconds, about a slice;
    a class that is owed so much goes first.
    """

    def __init__(self, shares: Mapping[Op, float], quantum: float) -> None:
        self._shares = shares
        self._quantum = quantum
        self._owed = dict.fromkeys(Op, 0.0)

    def choose(self, waiting: Sequence[Op]) -> Op | None:
        """Returns the class to serve of those that wait, most urgent first, or None where none does."""
        due = [op for op in waiting if self._owed[op] >= self._quantum]
        if due:
            return max(due, key=self._owed.__getitem__)
        return waiting[0] if waiting else None

    def account(self, used: Mapping[Op, float], waiting: Collection[Op]) -> None:
        """Takes in the seconds that each class used of a slice. One that does not wait any more is owed nothing, and
        none is owed more than two quanta, so that a single long slice is not paid back with a row of them."""
        total = sum(used.values())
        for op in Op:
            owed = self._owed[op] + self._shares[op] * total - used.get(op, 0.0)
            self._owed[op] = min(max(owed, 0.0), 2 * self._quantum) if op in waiting else 0.0
