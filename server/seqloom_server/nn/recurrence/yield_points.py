"""Where device work may be interrupted: after so much of it, a pure function of shapes, never of a clock."""

from collections.abc import Generator

import torch

Pieces = Generator[None, None, None]

# What a number costs where no product is made of it: functions like exp and tanh, and the way to memory and back.
FLOPS_PER_ELEMENT = 60.0
_STEP_ROWS, _STEP_FLOPS = 8, 1.5e6  # a recurrent step costs no less: a few rows read the weights all the same
_BLOCK_ROWS = 16  # blocks of products are multiples of it


class YieldBudget:
    """Counts the work done since the last interruption; limit: how many flops a piece has, at about."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._done = 0.0

    def due(self, flops: float) -> bool:
        """Counts work that was done; true where it completes a piece, so that the caller yields."""
        self._done += flops
        if self._done < self.limit:
            return False
        self._done = 0.0
        return True

    def block(self, flops_per_row: float, rows: int) -> int:
        """How many of so many rows are one piece at most: equal blocks."""
        most = max(_BLOCK_ROWS, int(self.limit / flops_per_row))
        if rows <= most:
            return max(1, rows)
        count = -(-rows // most)
        return -(-rows // count // _BLOCK_ROWS) * _BLOCK_ROWS


def step_flops(rows: int, weights: int) -> float:
    """The cost of a recurrent step of so many rows and weights."""
    return max(_STEP_FLOPS, 2.0 * max(rows, _STEP_ROWS) * weights)


def product(
    budget: YieldBudget,
    out: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    add: bool = False,
) -> Pieces:
    """out = left right (+ bias), or out += left right, in blocks of `out`, so that each number is made at once.

    Blocks are of rows or of columns: each reads the other factor anew, which had better be the smaller one.
    """
    by_columns = left.numel() < right.numel()
    size, others = (out.shape[1], out.shape[0]) if by_columns else (out.shape[0], out.shape[1])
    flops = 2.0 * left.shape[1] * others
    block = budget.block(flops, size)
    for start in range(0, size, block):
        own = slice(start, start + block)
        if by_columns:
            part, factors, c = out[:, own], (left, right[:, own]), None if bias is None else bias[own]
        else:
            part, factors, c = out[own], (left[own], right), bias
        if c is not None:
            torch.addmm(c, *factors, out=part)
        elif add:
            part.addmm_(*factors)
        else:
            torch.mm(*factors, out=part)
        if budget.due(flops * (min(start + block, size) - start)):
            yield
