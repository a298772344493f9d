"""How long a slice takes: seconds = a + b * steps + c * cells, learned from the slices that ran.

Any slice costs a pass over the output weights and the way there and back, a step a pass over the recurrent weights
however few rows share it, and each row its own products: with these, a slice's bound in milliseconds becomes a bound in
steps for any number of members.
"""

import math
from typing import Any

import numpy as np

_FADE = 0.98
_TELLING = 0.01  # how far from alike slices must be to tell one cost from another; below, noise would decide on it
_PACE = 8.0  # how far a cost may move at a time, as a factor
_EACH = 8  # observations, after the first ones, to a solution: it takes as long as a small slice's bookkeeping


class SliceCost:
    """The cost model of one model's weights: least squares over the slices seen, older ones fading.

    The first guess counts floating-point operations. per_slice, per_step, per_cell: seconds, all above 0.
    """

    def __init__(self, flops_per_step: float, flops_per_second: float) -> None:
        per_cell = max(flops_per_step / flops_per_second, 1e-8)
        self.per_slice, self.per_step, self.per_cell = 2 * per_cell + 1e-5, 2 * per_cell + 2e-5, per_cell
        # of the normal equations: in relative terms, so that short slices count as much as long ones
        self._products, self._sums = np.zeros((3, 3)), np.zeros(3)
        self._seen = 0

    def observe(self, steps: int, cells: int, seconds: float) -> None:
        """Takes in a slice of `cells` rows, the longest member `steps` long, that took `seconds`."""
        if not steps or seconds <= 0:
            return
        # far below what any slice takes, far above where the sums lose their digits
        sizes = np.array((1.0, steps, cells)) / max(seconds, 1e-7)
        self._products = _FADE * self._products + np.outer(sizes, sizes)
        self._sums = _FADE * self._sums + sizes
        self._seen += 1
        if self._seen < _EACH or self._seen % _EACH == 0:
            self._solve()

    def _solve(self) -> None:
        known = np.array((self.per_slice, self.per_step, self.per_cell))
        # slices that are much alike tell only their sum, so first all costs alike
        costs = known * (self._sums @ known) / (known @ self._products @ known)
        # then one against the other, in the directions that the slices tell anything of
        scale = 1 / np.sqrt(self._products.diagonal())
        telling, directions = np.linalg.eigh(self._products * np.outer(scale, scale))
        directions = directions[:, telling > _TELLING]
        missing = scale * (self._sums - self._products @ costs)
        costs += scale * (directions @ ((missing @ directions) / telling[telling > _TELLING]))
        found = np.clip(costs, known / _PACE, known * _PACE).clip(1e-10, 1e5)
        self.per_slice, self.per_step, self.per_cell = found.tolist()

    def seconds(self, steps: Any, cells: Any) -> Any:
        """What a slice is expected to take; numbers or arrays of them."""
        return self.per_slice + self.per_step * steps + self.per_cell * cells

    @property
    def wide(self) -> int:
        """How many members a batch has when four fifths of its steps' time go to their cells."""
        return math.ceil(4 * self.per_step / self.per_cell)
