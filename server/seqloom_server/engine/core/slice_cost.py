"""The cost model of a slice: seconds = a + b * steps + c * cells, fitted to the slices that ran.

A slice reads the output weights once and has a fixed overhead (a), each step reads the recurrent weights once, however
few rows it has (b), and each row, or cell, has its own products (c). So a limit in milliseconds becomes a limit in
steps for any number of members.
"""

import math
from typing import Any

import numpy as np

_DECAY = 0.98  # of older observations' weight
_FIRST = 8  # observations, after each of which the model is fitted
_INTERVAL = 32  # later observations between two fits: a fit takes as long as a small slice's bookkeeping
_MIN_EIGENVALUE = 0.01  # of a direction in which slices differ enough to tell costs apart
_MIN_SIGNIFICANCE = 9.0  # times the variance: a smaller change of a cost is noise
_MIN_VARIANCE = 0.003  # relative, of a slice's time
_MAX_FALL = 8.0  # of a cost in one fit, as a factor


class SliceCost:
    """The cost model of one model's weights: least squares over the slices observed, with decaying weights.

    The initial guess counts floating-point operations. per_slice, per_step, per_cell: seconds, all above 0.
    """

    def __init__(self, flops_per_step: float, flops_per_second: float) -> None:
        per_cell = max(flops_per_step / flops_per_second, 1e-8)
        self.per_slice, self.per_step, self.per_cell = 2 * per_cell + 1e-5, 2 * per_cell + 2e-5, per_cell
        # the normal equations, of relative errors, so that short slices count as much as long ones: the upper triangle
        # of the products, row by row, and the sums; plain numbers, as numpy takes ten times as long for so few
        self._equations = [0.0] * 9
        self._count = 0.0
        self._since_fit = 0

    def observe(self, steps: int, cells: int, seconds: float) -> None:
        """Adds the observation of a slice: `cells` rows, the longest member `steps` long, took `seconds`."""
        if steps < 1 or cells < 1 or not 0 < seconds < math.inf:
            return
        # 1e-7 s is far less than any slice takes, and large enough for the sums to keep their digits
        one = 1.0 / max(seconds, 1e-7)
        deep, wide = steps * one, cells * one
        added = (one * one, one * deep, one * wide, deep * deep, deep * wide, wide * wide, one, deep, wide)
        self._equations = [_DECAY * old + new for old, new in zip(self._equations, added, strict=True)]
        self._count = _DECAY * self._count + 1
        self._since_fit += 1
        if self._count < _FIRST or self._since_fit >= _INTERVAL or seconds > 2 * self.seconds(steps, cells):
            self._since_fit = 0
            self._fit()

    def _fit(self) -> None:
        a, b, c, d, e, f, *rest = self._equations
        products, sums = np.array(((a, b, c), (b, d, e), (c, e, f))), np.array(rest)
        costs = np.array((self.per_slice, self.per_step, self.per_cell))
        # slices of similar sizes determine only the sum of the costs, so first scale all costs alike
        costs *= (sums @ costs) / (costs @ products @ costs)
        # then change them relative to each other, in the directions in which the slices differ by more than noise
        scale = 1 / np.sqrt(products.diagonal())
        eigenvalues, directions = np.linalg.eigh(products * np.outer(scale, scale))
        enough = eigenvalues > _MIN_EIGENVALUE
        eigenvalues, directions = eigenvalues[enough], directions[:, enough]
        changes = (scale * (sums - products @ costs)) @ directions / eigenvalues
        explained = changes**2 * eigenvalues
        residual = self._count - 2 * costs @ sums + costs @ products @ costs - explained.sum()
        significant = explained > _MIN_SIGNIFICANCE * max(residual / max(self._count - 3, 1), _MIN_VARIANCE)
        fitted = np.maximum(costs + scale * (directions[:, significant] @ changes[significant]), costs / _MAX_FALL)
        fitted *= (sums @ fitted) / (fitted @ products @ fitted)
        self.per_slice, self.per_step, self.per_cell = fitted.clip(1e-10, 1e5).tolist()

    @property
    def is_known(self) -> bool:
        """Whether enough slices were observed that the costs are no mere guess."""
        return self._count >= _FIRST - 1

    def seconds(self, steps: Any, cells: Any) -> Any:  # numbers or arrays alike
        """Returns the expected seconds of slices, 0 for one without steps. steps, cells: numbers or arrays."""
        return self.per_slice * (steps > 0) + self.per_step * steps + self.per_cell * cells

    def cell_seconds(self, width: float) -> float:
        """Returns the expected seconds of one cell in a long slice of `width` members."""
        return self.per_cell + self.per_step / width

    @property
    def efficient_width(self) -> int:
        """The number of members at which four fifths of a step's time are spent on its cells."""
        return math.ceil(4 * self.per_step / self.per_cell)
