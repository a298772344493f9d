"""Computes the indices between sequences of unequal lengths and packed rows, once for each training batch.

Packed rows: sequences ranked longest first, time-major, each step a prefix of them, so that there is no padding. Row
(t, r), step t of the sequence of rank r, is at offset[t] + r. The other order is sequence-major, as the call sent them.

Buffers of states have N more rows in front: the states before the first step. So the state before a packed row, and the
last state of a sequence, are rows of the same buffer.
"""

import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

Index = npt.NDArray[np.int64]

_WINDOW = 64


class PackedRows:
    """The packing of sequences of `lengths` [N]; every length is at least 1.

    order: [N], the sequence of each rank. batch_sizes: int64 [T], the number of sequences at each step. to_packed:
    [cells], the sequence-major row of each packed row; from_packed: [cells], the inverse.
    """

    def __init__(self, lengths: Index, device: torch.device) -> None:
        self.device = device
        self.count, self.cells = len(lengths), int(lengths.sum())
        self.order: Index = np.argsort(-lengths, kind="stable")
        self._ranked = lengths[self.order]
        valid = np.arange(self._ranked[0])[:, None] < self._ranked  # [T, N]
        self.batch_sizes: Index = valid.sum(1)
        self.sizes: list[int] = self.batch_sizes.tolist()
        self._offsets = np.cumsum(self.batch_sizes) - self.batch_sizes
        starts = (np.cumsum(lengths) - lengths)[self.order]
        steps, ranks = np.nonzero(valid)
        self._steps, self._ranks = steps, ranks
        to_packed = starts[ranks] + steps
        from_packed = np.empty(self.cells, np.int64)
        from_packed[to_packed] = np.arange(self.cells)
        self.to_packed, self.from_packed = self._tensor(to_packed), self._tensor(from_packed)
        inverse = np.empty(self.count, np.int64)
        inverse[self.order] = np.arange(self.count)
        self.ranks = self._tensor(inverse)  # of each sequence

    def _tensor(self, index: Index) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(index)).to(self.device)

    @functools.cached_property
    def reverse(self) -> torch.Tensor:
        """[cells]: the row of each packed row when every sequence is reversed in time; its own inverse."""
        return self._tensor(self._offsets[self._ranked[self._ranks] - 1 - self._steps] + self._ranks)

    @functools.cached_property
    def last(self) -> torch.Tensor:
        """[N]: by rank, the row of a sequence's last state in a buffer of states."""
        return self._tensor(self.count + self._offsets[self._ranked - 1] + np.arange(self.count))

    @functools.cached_property
    def _before(self) -> torch.Tensor | None:
        if self.sizes[-1] == self.count:
            return None
        starts = np.concatenate([[0], self.count + self._offsets[:-1]])
        return self._tensor(starts[self._steps] + self._ranks)

    def before(self, states: torch.Tensor) -> torch.Tensor:
        """Returns the state before each packed row, [cells, H], from a buffer of states [N + cells, H]."""
        if self._before is None:  # all of one length
            return states[: self.cells]
        return states.index_select(0, self._before)

    def steps(self, rows: torch.Tensor, *, back: bool = False) -> Iterator[torch.Tensor]:
        """Yields the rows of each step, views of packed rows; backward from the last step if `back`."""
        return self._views(rows, self._offsets, self.sizes, back)

    def steps_before(self, states: torch.Tensor, *, back: bool = False) -> Iterator[torch.Tensor]:
        """Yields for each step the states before it, views of a buffer of states; backward if `back`."""
        starts = np.concatenate([[0], self.count + self._offsets[:-1]])
        blocks = self._views(states, starts, [self.count, *self.sizes[:-1]], back)
        sizes = reversed(self.sizes) if back else self.sizes
        return (block if len(block) == size else block[:size] for block, size in zip(blocks, sizes, strict=True))

    @staticmethod
    def _views(rows: torch.Tensor, starts: Index, sizes: list[int], back: bool) -> Iterator[torch.Tensor]:
        # some steps at a time: making the views of very many steps would take as long as a piece of work
        windows = range(0, len(sizes), _WINDOW)
        for first in reversed(windows) if back else windows:
            window = sizes[first : first + _WINDOW]
            start = int(starts[first])
            views = rows[start : start + sum(window)].split_with_sizes(window)
            yield from reversed(views) if back else views
