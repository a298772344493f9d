"""How long a slice takes: seconds = a + b * steps + c * cells, learned from the slices that ran.

Any slice costs a pass over the output weights and the way there and back, a step a pass over the recurrent weights
however few rows share it, and each row its own products: with these, a slice's bound in milliseconds becomes a bound in
steps for any number of members.
"""

import math
from typing import Any

import numpy as np

_FADE = 0.98
_FIRST = 8  # observations, each of which is solved for
_EACH = 32  # later ones to a solution: it takes as long as a small slice's bookkeeping
_TELLING = 0.01  # how far from alike slices must be to tell one cost from another at all
_SURE = 9.0  # times its variance: by how much what they tell must differ from what was known; below, noise decides
_NOISE = 0.003  # the least relative variance of a slice's time
_PACE = 8.0  # how far a cost may fall at a time, as a factor


class SliceCost:
    """The cost model of one model's weights: least squares over the slices seen, older ones fading.

    The first guess counts floating-point operations. per_slice, per_step, per_cell: seconds, all above 0.
    """

    def __init__(self, flops_per_step: float, flops_per_second: float) -> None:
        per_cell = max(flops_per_step / flops_per_second, 1e-8)
        self.per_slice, self.per_step, self.per_cell = 2 * per_cell + 1e-5, 2 * per_cell + 2e-5, per_cell
        # of the normal equations: in relative terms, so that short slices count as much as long ones
        self._products, self._sums = np.zeros((3, 3)), np.zeros(3)
        self._count = 0.0
        self._unsolved = 0

    def observe(self, steps: int, cells: int, seconds: float) -> None:
        """Takes in a slice of `cells` rows, the longest member `steps` long, that took `seconds`."""
        if steps < 1 or cells < 1 or not 0 < seconds < math.inf:
            return
        # far below what any slice takes, far above where the sums lose their digits
        sizes = np.array((1.0, steps, cells)) / max(seconds, 1e-7)
        self._products = _FADE * self._products + np.outer(sizes, sizes)
        self._sums = _FADE * self._sums + sizes
        self._count = _FADE * self._count + 1
        self._unsolved += 1
        if self._count < _FIRST or self._unsolved >= _EACH or seconds > 2 * self.seconds(steps, cells):
            self._unsolved = 0
            self._solve()

    def _solve(self) -> None:
        products, sums = self._products, self._sums
        costs = np.array((self.per_slice, self.per_step, self.per_cell))
        # slices that are much alike tell only their sum, so first all costs alike
        costs *= (sums @ costs) / (costs @ products @ costs)
        # then one against the other, in the directions of which the slices tell more than their noise
        scale = 1 / np.sqrt(products.diagonal())
        telling, directions = np.linalg.eigh(products * np.outer(scale, scale))
        enough = telling > _TELLING
        telling, directions = telling[enough], directions[:, enough]
        changes = (scale * (sums - products @ costs)) @ directions / telling
        explained = changes**2 * telling
        left = self._count - 2 * costs @ sums + costs @ products @ costs - explained.sum()
        sure = explained > _SURE * max(left / max(self._count - 3, 1), _NOISE)
        found = np.maximum(costs + scale * (directions[:, sure] @ changes[sure]), costs / _PACE)
        found *= (sums @ found) / (found @ products @ found)
        self.per_slice, self.per_step, self.per_cell = found.clip(1e-10, 1e5).tolist()

    def seconds(self, steps: Any, cells: Any) -> Any:
        """What a slice is expected to take, nothing for one of no steps; numbers or arrays of them."""
        return self.per_slice * (steps > 0) + self.per_step * steps + self.per_cell * cells

    @property
    def wide(self) -> int:
        """How many members a batch has when four fifths of its steps' time go to their cells."""
        return math.ceil(4 * self.per_step / self.per_cell)
