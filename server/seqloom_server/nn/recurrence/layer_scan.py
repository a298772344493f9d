"""The recurrence of one layer in one direction over packed rows, forward and back, in pieces; Elman's here.

dL/da_t is linear in dL/ds_t, so whatever stands between the two is computed for all rows in a few large calls first.
The walks over the steps are then a few calls of torch a step, into buffers that are there already.
"""

from typing import ClassVar, NamedTuple

import torch

from seqloom_server.nn.recurrence.packed_rows import PackedRows
from seqloom_server.nn.recurrence.yield_points import FLOPS_PER_ELEMENT, Pieces, YieldBudget, product, step_flops


class LayerWeights(NamedTuple):
    """One layer's and direction's: u [gates H, D], w [gates H, H], b_u and b_w [gates H]."""

    u: torch.Tensor
    w: torch.Tensor
    b_u: torch.Tensor
    b_w: torch.Tensor


class LayerScan:
    """A layer's pass over one batch, which keeps what its way back needs.

    states: [N + cells, H], the N first ones those before the first step. cells: the same of an LSTM, else None.
    delta_in, delta_rec: [cells, gates H], after the way back: dL/da_t on the side of the inputs, and on that of the
    states.
    """

    gates: ClassVar[int]
    states: torch.Tensor
    cells: torch.Tensor | None = None
    delta_in: torch.Tensor
    delta_rec: torch.Tensor

    def __init__(self, weights: LayerWeights, packed: PackedRows, budget: YieldBudget) -> None:
        self.weights = weights
        self.packed = packed
        self.budget = budget
        self.costs = [step_flops(size, weights.w.numel()) for size in packed.sizes]

    def forward(self, rows: torch.Tensor, initial: tuple[torch.Tensor, ...] | None) -> Pieces:
        """Runs packed rows [cells, D] from the states `initial`, [N, H] per part; zeros where there are none."""
        raise NotImplementedError

    def backward(self, d_states: torch.Tensor, d_cell: torch.Tensor | None) -> Pieces:
        """Runs back. d_states: [N + cells, H], the gradient of each state by what is not this layer; what comes from
        later steps is added to it. d_cell: [N, H], an LSTM's dL/dc_T, which becomes dL/dc_0.
        """
        raise NotImplementedError

    def _buffer(self, rows: torch.Tensor, initial: torch.Tensor | None) -> torch.Tensor:
        """Returns a buffer for states, filled as far as they are known."""
        count = self.packed.count
        states = rows.new_empty(count + self.packed.cells, self.weights.w.shape[1])
        if initial is None:
            states[:count].zero_()
        else:
            states[:count] = initial
        return states

    def _blocks(self, width: int) -> list[slice]:
        """Cuts the packed rows where functions of `width` numbers a row are computed for all of them."""
        cells = self.packed.cells
        block = min(self.budget.block(FLOPS_PER_ELEMENT * width, cells), max(16, 2**18 // width))
        return [slice(start, start + block) for start in range(0, cells, block)]


class ElmanScan(LayerScan):
    """s_t = phi(U x_t + W s_(t-1) + b); delta_t = dL/ds_t * phi'(a_t), dL/ds_(t-1) += W' delta_t."""

    gates = 1

    def __init__(self, weights: LayerWeights, packed: PackedRows, budget: YieldBudget, *, relu: bool = False) -> None:
        super().__init__(weights, packed, budget)
        self._relu = relu

    def forward(self, rows: torch.Tensor, initial: tuple[torch.Tensor, ...] | None) -> Pieces:
        u, w, b_u, b_w = self.weights
        self.states = self._buffer(rows, initial[0] if initial else None)
        after = self.states[self.packed.count :]
        yield from product(self.budget, after, rows, u.t(), bias=b_u + b_w)
        transposed, phi = w.t(), torch.relu_ if self._relu else torch.tanh_
        steps = zip(self.packed.steps(after), self.packed.steps_before(self.states), self.costs, strict=True)
        for s, before, cost in steps:
            phi(s.addmm_(before, transposed))
            if self.budget.due(cost):
                yield

    def backward(self, d_states: torch.Tensor, d_cell: torch.Tensor | None) -> Pieces:
        after = self.states[self.packed.count :]
        delta = torch.empty_like(after)
        for block in self._blocks(delta.shape[1]):
            # phi'(a), out of s: no state of relu is below 0
            if self._relu:
                torch.sign(after[block], out=delta[block])
            else:
                torch.addcmul(after.new_ones(()), after[block], after[block], value=-1, out=delta[block])
            if self.budget.due(FLOPS_PER_ELEMENT * delta[block].numel()):
                yield
        self.delta_in = self.delta_rec = delta
        w = self.weights.w
        steps = zip(
            self.packed.steps(delta, back=True),
            self.packed.steps(d_states[self.packed.count :], back=True),
            self.packed.steps_before(d_states, back=True),
            reversed(self.costs),
            strict=True,
        )
        for d, d_s, d_before, cost in steps:
            d_before.addmm_(d.mul_(d_s), w)
            if self.budget.due(cost):
                yield
