"""Chooses the points at which training yields the device to other work, by counted flops: shapes only, no clock."""

from collections.abc import Generator

import torch

Pieces = Generator[None, None, None]

# The cost of a number in elementwise functions, like exp and tanh: computing and memory access.
FLOPS_PER_ELEMENT = 60.0
_STEP_ROWS, _STEP_FLOPS = 8, 1.5e6  # the least cost of a recurrent step: a few rows read all weights, too
_BLOCK_ROWS = 16  # blocks of products are multiples of this


class YieldBudget:
    """Counts the flops since the last yield. limit: the approximate flops between two yields."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._done = 0.0

    def due(self, flops: float) -> bool:
        """Counts flops; returns whether they reach the limit, so that the caller yields."""
        self._done += flops
        if self._done < self.limit:
            return False
        self._done = 0.0
        return True

    def block(self, flops_per_row: float, rows: int) -> int:
        """Returns the size of equal blocks of `rows` rows that stay within the limit."""
        most = max(_BLOCK_ROWS, int(self.limit / flops_per_row))
        if rows <= most:
            return max(1, rows)
        count = -(-rows // most)
        return -(-rows // count // _BLOCK_ROWS) * _BLOCK_ROWS


def step_flops(rows: int, weights: int) -> float:
    """Returns the cost of a recurrent step of `rows` rows and `weights` weights."""
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
    """Computes out = left right (+ bias), or out += left right, in blocks of `out`; each number in one call.

    Blocks are of rows or of columns, whichever reads the smaller factor again for each block.
    """
    by_columns = left.numel() < right.numel()
    size, others = (out.shape[1], out.shape[0]) if by_columns else (out.shape[0], out.shape[1])
    flops = 2.0 * left.shape[1] * others
    block = budget.block(flops, size)
    for start in range(0, size, block):
        place = slice(start, start + block)
        if by_columns:
            part, factors, c = out[:, place], (left, right[:, place]), None if bias is None else bias[place]
        else:
            part, factors, c = out[place], (left[place], right), bias
        if c is not None:
            torch.addmm(c, *factors, out=part)
        elif add:
            part.addmm_(*factors)
        else:
            torch.mm(*factors, out=part)
        if budget.due(flops * (min(start + block, size) - start)):
            yield
