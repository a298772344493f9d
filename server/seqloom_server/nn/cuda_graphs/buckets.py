"""The buckets of padded batches: sizes rounded up to a geometric grid, with bounded padding.

A CUDA graph has fixed shapes, so there is one for each bucket, captured in advance. The grid has four sizes to a
doubling, so that padding is an eighth of a size on average, and a fifth at most.
"""

from bisect import bisect_left
from typing import NamedTuple

MAX_PADDING = 0.25  # of a rectangle's cells


class Rectangle(NamedTuple):
    """A padded batch of T steps by N rows, run in blocks of steps, one after the other."""

    blocks: tuple[int, ...]
    rows: int

    @property
    def steps(self) -> int:
        """The number of steps, T."""
        return sum(self.blocks)

    @property
    def cells(self) -> int:
        """The number of cells, T N."""
        return self.steps * self.rows


def _grid(most: int) -> tuple[int, ...]:
    """Returns 1 to 8, then four sizes to each doubling, up to `most`."""
    sizes, step = list(range(1, 9)), 2
    while sizes[-1] < most:
        sizes += [sizes[-1] + step * k for k in range(1, 5)]
        step *= 2
    return tuple(sizes)


class Grid(NamedTuple):
    """The sizes of buckets, ascending; a block has at most the largest of `steps`."""

    steps: tuple[int, ...]
    rows: tuple[int, ...]


GRID = Grid(_grid(32), _grid(256))


def rectangle(
    steps: int, count: int, cells: int, max_padding: float = MAX_PADDING, grid: Grid = GRID
) -> Rectangle | None:
    """Returns the smallest rectangle of buckets that holds `count` sequences of up to `steps` steps, `cells` in all.

    None if it is wider than any bucket, or more than `max_padding` of it would be padding.
    """
    if count > grid.rows[-1]:
        return None
    whole, rest = divmod(steps, grid.steps[-1])
    blocks = (grid.steps[-1],) * whole + ((grid.steps[bisect_left(grid.steps, rest)],) if rest else ())
    found = Rectangle(blocks, grid.rows[bisect_left(grid.rows, count)])
    return found if cells >= (1 - max_padding) * found.cells else None
