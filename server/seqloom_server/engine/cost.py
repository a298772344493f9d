"""How long a slice takes: seconds = a * steps + b * cells, learned from the slices that ran.

A step costs a pass over the recurrent weights however few rows share it, and each row its own products: with both, a
slice's bound in milliseconds becomes a bound in steps for any number of members.
"""

import math

_FADE = 0.98
_TELLING = 0.05  # how far from alike slices must be to tell a step's cost from a cell's; below, noise would


class SliceCost:
    """The cost model of one model's weights: least squares over the slices seen, older ones fading.

    The first guess counts floating-point operations; it is worth a handful of observations.
    per_step, per_cell: seconds, both always above 0.
    """

    def __init__(self, flops_per_step: float, flops_per_second: float) -> None:
        per_cell = max(flops_per_step / flops_per_second, 1e-8)
        self.per_step, self.per_cell = 2 * per_cell + 2e-5, per_cell
        # normal equations, seeded with slices of 1 x 8 and 64 x 8 as the guess has them
        self._ss = self._sc = self._cc = self._sy = self._cy = 0.0
        for steps, cells in ((8, 8), (8, 512)):
            self._add(steps, cells, self.per_step * steps + self.per_cell * cells)

    def _add(self, steps: int, cells: int, seconds: float) -> None:
        # in relative terms, so that short slices count as much as long ones
        weight = 1 / max(seconds, 1e-6) ** 2
        self._ss += weight * steps * steps
        self._sc += weight * steps * cells
        self._cc += weight * cells * cells
        self._sy += weight * steps * seconds
        self._cy += weight * cells * seconds

    def observe(self, steps: int, cells: int, seconds: float) -> None:
        """Takes in a slice of `cells` rows, the longest member `steps` long, that took `seconds`."""
        if not steps or seconds <= 0:
            return
        seconds = max(seconds, 1e-7)  # far below what any slice takes, far above where the sums lose their digits
        for name in ("_ss", "_sc", "_cc", "_sy", "_cy"):
            setattr(self, name, getattr(self, name) * _FADE)
        self._add(steps, cells, seconds)
        determinant = self._ss * self._cc - self._sc * self._sc
        if determinant > _TELLING * self._ss * self._cc:
            per_step = (self._sy * self._cc - self._cy * self._sc) / determinant
            per_cell = (self._cy * self._ss - self._sy * self._sc) / determinant
            if per_step > 0 and per_cell > 0:
                self.per_step, self.per_cell = per_step, per_cell
                return
        # slices all alike tell only their sum: keep the ratio of the two, scale both
        predicted = self.seconds(steps, cells)
        scale = (seconds / predicted) ** 0.1
        self.per_step *= scale
        self.per_cell *= scale

    def seconds(self, steps: int, cells: int) -> float:
        """What a slice is expected to take."""
        return self.per_step * steps + self.per_cell * cells

    @property
    def wide(self) -> int:
        """How many members a batch has when four fifths of its time go to their cells and one fifth to the steps."""
        return math.ceil(4 * self.per_step / self.per_cell)
