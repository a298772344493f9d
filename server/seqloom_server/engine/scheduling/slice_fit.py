"""Chooses how many waiting sequences join a slice, and how many of their steps run: wide, dense, within every bound.

The steps of a slice run one after the other, and each reads the recurrent weights once, however many sequences it has:
so a slice is most efficient while all of its rows are in use. Sequences may be cut at any step: a slice ends where few
of them have steps left; the short ones then have their outputs, and waiting ones take their places.
"""

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.sequence import Slice

Lengths = npt.NDArray[np.int64]

MIN_WIDTH = 32  # members that share a slice, cut short if necessary, rather than run to their ends in turns
_PADDING_TO_END = 2.0  # times max_padding, in a slice that brings those whose turn it is to their ends


class SliceFit:
    """Fits more sequences into `slice_`, which may take `seconds`.

    widths: [N], the rows of each sequence at each of its steps; None for 1.
    """

    def __init__(self, limits: SchedulerLimits, seconds: float, slice_: Slice, widths: list[int] | None = None) -> None:
        self._limits = limits
        # if one row alone takes as long as a slice may, most of that is not its own cost, and other rows add little
        self._seconds = max(seconds, 2 * slice_.weights.cost.seconds(1, 1))
        self._slice = slice_
        self._width = sum(member.width for member in slice_.members if member.steps)
        self._widths: Lengths | None = None if widths is None else np.array(widths, np.int64)

    def widest(self) -> int:
        """Returns how many streams of a group an empty slice may run for a step; MIN_WIDTH however long that takes."""
        weights, cost = self._slice.weights, self._slice.weights.cost
        in_time = int((self._seconds - cost.per_slice - cost.per_step) / cost.per_cell)
        return min(max(in_time, MIN_WIDTH), self._limits.max_batch_steps, weights.max_cells)

    def takes_alone(self, steps: int, width: int) -> bool:
        """Returns whether an empty slice may take all of one sequence's `steps` steps: as fit() finds, but sooner."""
        cells = steps * width
        return not self._slice.members and bool(self._within(steps, cells, cells, self._seconds))

    def fit(self, lengths: Lengths, least: int = 0, width: int = MIN_WIDTH) -> tuple[int, int]:
        """Returns (count, cut): the first `count` of the sequences may join, each with at most `cut` steps.

        lengths: [N], the steps that each could run, in the order in which they should join, 0 for a reset or end
        without frames. An empty slice gets at least one sequence and one step. Sequences that join others run no more
        steps than these, whose outputs they would delay. If sequences must not be cut, `cut` is the steps of the
        longest. least: the steps that should run, if `width` sequences fit with so many.
        """
        longest = int(lengths.max(initial=0))
        if self._slice.weights.whole_only:
            return self._count_whole(lengths), longest
        if self._slice.steps:
            cut = min(longest, self._slice.steps)
            return self._count(lengths, cut, dense=True), cut
        if self._widths is not None:
            lengths = lengths[: self._count_together(lengths)]
            longest = int(lengths.max())
        size = self._size(lengths, longest)
        if self._within(*size, self._seconds) and self._is_efficient(size):
            return len(lengths), max(longest, 1)  # all steps of all sequences, as in most slices
        depth = _largest(longest, lambda cut: self._is_efficient(self._size(lengths, cut)))
        if least:
            for cut in (max(depth, least), least):
                count = self._count_dense(lengths, cut)
                if count >= min(width, len(lengths)):
                    return count, cut
        count = self._count(lengths, depth)
        width = max(MIN_WIDTH, self._slice.weights.cost.efficient_width)
        if count < min(width, len(lengths)):
            count = max(count, min(width, self._count(lengths, 1)))
        if not self._slice.members:
            count = max(count, 1)
        return count, _largest(depth, lambda cut: bool(self._within(*self._size(lengths[:count], cut), self._seconds)))

    def _count_whole(self, lengths: Lengths) -> int:
        """Returns how many of the first sequences may run to their ends: at least one, however long it is.

        Others join it until they double its time: their steps run beside its own.
        """
        if self._slice.members:
            return self._count(lengths, int(lengths.max(initial=0)))
        first = int(lengths[0])  # a group has no bidirectional layers, so its width is 1
        seconds = max(self._seconds, 2 * self._slice.weights.cost.seconds(first, first))
        return max(1, self._count(lengths, int(lengths.max()), seconds))

    def _count_together(self, lengths: Lengths) -> int:
        """Returns how many of the first sequences do not keep each other short because one of them is a wide group.

        Beside a step of hundreds of streams, ten steps of a single one are thin. If they were cut to one in each slice,
        they would last as long as ten steps of the group. So the two take turns.
        """
        assert self._widths is not None
        size = self._sizes(lengths, int(lengths.max()))
        efficient = self._dense(*size) | self._within(*size, self._limits.grain_seconds)
        apart = ~efficient & np.logical_or.accumulate(self._widths >= MIN_WIDTH)
        return max(1, int(apart.argmax())) if apart.any() else len(lengths)

    def _is_efficient(self, size: tuple[int, int, int]) -> bool:
        return bool(self._dense(*size) or self._within(*size, self._limits.grain_seconds))

    def _count(self, lengths: Lengths, cut: int, seconds: float | None = None, *, dense: bool = False) -> int:
        """Returns how many of the first sequences fit if each is cut to `cut` steps."""
        size = self._sizes(lengths, cut)
        fits = self._within(*size, self._seconds if seconds is None else seconds)
        if dense:
            fits = fits & self._dense(*size)
        return len(fits) if fits.all() else int(fits.argmin())

    def _count_dense(self, lengths: Lengths, cut: int) -> int:
        """Returns the largest number of the first sequences that fit and are dense, as fewer of them need not be."""
        size = self._sizes(lengths, cut)
        fits = np.logical_and.accumulate(self._within(*size, self._seconds)) & self._dense(*size, _PADDING_TO_END)
        return int(np.flatnonzero(fits)[-1]) + 1 if fits.any() else 0

    def _sizes(self, lengths: Lengths, cut: int) -> tuple[Any, Any, Any]:
        """Returns [N] each: steps, cells and padded cells of the slice with the first 1..N of the sequences."""
        sizes = np.minimum(lengths, cut)
        steps = np.maximum(np.maximum.accumulate(sizes), self._slice.steps)
        rows = np.cumsum(self._rows(sizes > 0))
        return steps, self._slice.cells + np.cumsum(self._rows(sizes)), steps * (self._width + rows)

    def _within(self, steps: Any, cells: Any, padded: Any, seconds: float) -> Any:  # numbers or arrays alike
        """Returns whether slices of these sizes, numbers or arrays, keep the bounds."""
        weights = self._slice.weights
        return (
            (padded <= self._limits.max_batch_steps)
            & (cells <= weights.max_cells)
            & (weights.cost.seconds(steps, cells) <= seconds)
        )

    def _size(self, lengths: Lengths, cut: int) -> tuple[int, int, int]:
        """Returns steps, cells and padded cells of the first sequences, if they are cut to `cut` steps."""
        sizes = np.minimum(lengths, cut)
        steps = int(sizes.max(initial=0))
        return steps, int(self._rows(sizes).sum()), steps * int(self._rows(sizes > 0).sum())

    def _rows(self, sizes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns the rows of the first sequences, of which each has so many steps."""
        return sizes if self._widths is None else sizes * self._widths[: len(sizes)]

    def _dense(self, steps: Any, cells: Any, padded: Any, times: float = 1.0) -> Any:
        return cells >= (1 - times * self._limits.max_padding) * padded


def _largest(most: int, holds: Callable[[int], bool]) -> int:
    """Returns the largest of 1..most for which `holds`, which is true up to some number; 1 if it is never true."""
    if most <= 1 or holds(most):
        return max(most, 1)
    return max(1, bisect_left(range(1, most), True, key=lambda number: not holds(number)))
