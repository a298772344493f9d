"""How many of the waiting sequences join a slice, and to how many steps they run: wide, dense, within every bound.

The steps of a slice run one after the other, each at the price of a pass over the recurrent weights, so a slice is
worth most while all of its rows are taken. Sequences may be cut at any step: a slice ends where it grows thin, its
short members have their answers then, and waiting ones take their places.
"""

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.sequence import Slice

Lengths = npt.NDArray[np.int64]

_WIDE = 32  # so many members share a slice, cut short if need be, rather than run to their ends by turns


class SliceFit:
    """What may still join the slice `taken`, which may take `seconds`."""

    def __init__(self, limits: SchedulerLimits, seconds: float, taken: Slice) -> None:
        self._limits = limits
        # where one row takes as long as a slice may, most of that is no row's own: others ride along
        self._seconds = max(seconds, 2 * taken.weights.cost.seconds(1, 1))
        self._taken = taken
        self._width = sum(1 for member in taken.members if member.steps)

    def fit(self, lengths: Lengths) -> tuple[int, int]:
        """Returns (count, cut): the first `count` of the sequences may join, each with at most `cut` steps.

        lengths: [N], the steps that each could run, oldest first, 0 for a bare reset or end. An empty slice takes at
        least one sequence and one step. Those that join others go no further than these: it is their answers that the
        slice holds up. Where sequences must not be cut, `cut` is the longest's steps.
        """
        longest = int(lengths.max(initial=0))
        if self._taken.weights.whole_only:
            return self._whole(lengths), longest
        if self._taken.steps:
            cut = min(longest, self._taken.steps)
            return self._count(lengths, cut, dense=True), cut
        size = _size(lengths, longest)
        if self._within(*size, self._seconds) and self._worth(size):
            return len(lengths), max(longest, 1)  # all of every one, as in most slices
        depth = _last(longest, lambda cut: self._worth(_size(lengths, cut)))
        count = self._count(lengths, depth)
        wide = max(_WIDE, self._taken.weights.cost.wide)
        if count < min(wide, len(lengths)):
            count = max(count, min(wide, self._count(lengths, 1)))
        if not self._taken.members:
            count = max(count, 1)
        return count, _last(depth, lambda cut: bool(self._within(*_size(lengths[:count], cut), self._seconds)))

    def _whole(self, lengths: Lengths) -> int:
        """How many of the first ones may run to their ends: the first always, for no waiting makes it any shorter.

        Others join it until they have doubled its time: their steps run beside its own.
        """
        if self._taken.members:
            return self._count(lengths, int(lengths.max(initial=0)))
        first = int(lengths[0])
        seconds = max(self._seconds, 2 * self._taken.weights.cost.seconds(first, first))
        return max(1, self._count(lengths, int(lengths.max()), seconds))

    def _worth(self, size: tuple[int, int, int]) -> bool:
        return bool(self._dense(*size) or self._within(*size, self._limits.grain_seconds))

    def _count(self, lengths: Lengths, cut: int, seconds: float | None = None, *, dense: bool = False) -> int:
        """How many of the first ones fit when each is cut to `cut` steps."""
        seconds = self._seconds if seconds is None else seconds
        sizes = np.minimum(lengths, cut)
        steps = np.maximum(np.maximum.accumulate(sizes), self._taken.steps)
        cells = self._taken.cells + np.cumsum(sizes)
        padded = steps * (self._width + np.cumsum(sizes > 0))
        fits = self._within(steps, cells, padded, seconds)
        if dense:
            fits = fits & self._dense(steps, cells, padded)
        return len(fits) if fits.all() else int(fits.argmin())

    def _within(self, steps: Any, cells: Any, padded: Any, seconds: float) -> Any:
        """Whether slices of these sizes, numbers or arrays of them, keep the bounds."""
        weights = self._taken.weights
        return (
            (padded <= self._limits.max_batch_steps)
            & (cells <= weights.max_cells)
            & (weights.cost.seconds(steps, cells) <= seconds)
        )

    def _dense(self, steps: Any, cells: Any, padded: Any) -> Any:
        return cells >= (1 - self._limits.max_padding) * padded


def _size(lengths: Lengths, cut: int) -> tuple[int, int, int]:
    """Steps, cells and padded cells of sequences that are cut to `cut`."""
    sizes = np.minimum(lengths, cut)
    steps = int(sizes.max(initial=0))
    return steps, int(sizes.sum()), steps * int(np.count_nonzero(sizes))


def _last(most: int, holds: Callable[[int], bool]) -> int:
    """The largest of 1..most for which `holds`, which holds up to some number and not beyond; 1 where for none."""
    if most <= 1 or holds(most):
        return max(most, 1)
    return max(1, bisect_left(range(1, most), True, key=lambda number: not holds(number)))
