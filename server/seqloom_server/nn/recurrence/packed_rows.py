"""From sequences of unequal lengths to packed rows and back: indices only, computed once a batch.

Packed: sequences ranked longest first, time-major, each step a prefix of them, so that no padding is computed or
stored. Row (t, r), step t of the sequence of rank r, lies at offset[t] + r. The other order is that of the sequences as
they were given, one after the other.

States have N rows more, in front: what was before the first step. So the state before a packed row, and the last state
of a sequence, are rows of the same buffer.
"""

import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

Index = npt.NDArray[np.int64]

_WINDOW = 64


class PackedRows:
    """Where the rows of sequences of `lengths` [N] lie; every length is at least 1.

    order: [N], the sequence of each rank. batch_sizes: int64 [T], how many sequences each step has. to_packed: [cells],
    the row that each packed row takes from the sequences' own order; from_packed: [cells], the way back.
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
        """[cells]: each row's counterpart where every sequence runs from its last step to its first; an involution."""
        return self._tensor(self._offsets[self._ranked[self._ranks] - 1 - self._steps] + self._ranks)

    @functools.cached_property
    def last(self) -> torch.Tensor:
        """[N]: by rank, the row of a buffer of states that holds a sequence's last one."""
        return self._tensor(self.count + self._offsets[self._ranked - 1] + np.arange(self.count))

    @functools.cached_property
    def _before(self) -> torch.Tensor | None:
        if self.sizes[-1] == self.count:
            return None
        starts = np.concatenate([[0], self.count + self._offsets[:-1]])
        return self._tensor(starts[self._steps] + self._ranks)

    def before(self, states: torch.Tensor) -> torch.Tensor:
        """Returns the state before each packed row, [cells, H], out of a buffer of states [N + cells, H]."""
        if self._before is None:  # all of one length
            return states[: self.cells]
        return states.index_select(0, self._before)

    def steps(self, rows: torch.Tensor, *, back: bool = False) -> Iterator[torch.Tensor]:
        """Gives the rows of each step, views of packed rows; from the last step on if `back`."""
        return self._views(rows, self._offsets, self.sizes, back)

    def steps_before(self, states: torch.Tensor, *, back: bool = False) -> Iterator[torch.Tensor]:
        """Gives for each step the states of its sequences before it, views of a buffer of states."""
        starts = np.concatenate([[0], self.count + self._offsets[:-1]])
        blocks = self._views(states, starts, [self.count, *self.sizes[:-1]], back)
        sizes = reversed(self.sizes) if back else self.sizes
        return (block if len(block) == size else block[:size] for block, size in zip(blocks, sizes, strict=True))

    @staticmethod
    def _views(rows: torch.Tensor, starts: Index, sizes: list[int], back: bool) -> Iterator[torch.Tensor]:
        # some at a time: views of very many steps would take as long as a piece of work
        windows = range(0, len(sizes), _WINDOW)
        for first in reversed(windows) if back else windows:
            own = sizes[first : first + _WINDOW]
            start = int(starts[first])
            views = rows[start : start + sum(own)].split_with_sizes(own)
            yield from reversed(views) if back else views
