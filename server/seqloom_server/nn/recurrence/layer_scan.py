"""The forward and backward pass of one recurrent layer over packed rows: the base class, and that of Elman networks.

dL/da_t is linear in dL/ds_t, so the factor between them is first computed for all rows in a few large calls. The loops
over the steps then make a few calls of torch a step, into buffers that are already allocated.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch

from seqloom_server.nn.recurrence.packed_rows import PackedRows
from seqloom_server.nn.recurrence.yield_points import FLOPS_PER_ELEMENT, Pieces, YieldBudget, product, step_flops

sigmoid_backward = torch.ops.aten.sigmoid_backward  # (d, y): d * y * (1 - y)
tanh_backward = torch.ops.aten.tanh_backward  # (d, y): d * (1 - y * y)


class LayerWeights(NamedTuple):
    """The weights of one layer and direction: u [gates H, D], w [gates H, H], b_u and b_w [gates H]."""

    u: torch.Tensor
    w: torch.Tensor
    b_u: torch.Tensor
    b_w: torch.Tensor


class LayerScan(ABC):
    """A layer's pass over one batch; keeps what its backward pass needs.

    states: [N + cells, H]; the first N are those before the first step. cells: the same of an LSTM, else None.
    delta_in, delta_rec: [cells, gates H], set by the backward pass: dL/da_t for the inputs' side and the states' side.
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

    @abstractmethod
    def forward(self, rows: torch.Tensor, initial: tuple[torch.Tensor, ...] | None) -> Pieces:
        """Runs packed rows [cells, D] from the states `initial`, [N, H] per part, or zeros."""

    @abstractmethod
    def backward(self, d_states: torch.Tensor, d_cell: torch.Tensor | None) -> Pieces:
        """Runs backward. d_states: [N + cells, H], the gradient of each state from outside this layer, to which the
        gradients from later steps are added. d_cell: [N, H], an LSTM's dL/dc_T, which becomes dL/dc_0.
        """

    def _buffer(self, rows: torch.Tensor, initial: torch.Tensor | None) -> torch.Tensor:
        """Returns a buffer for states, with the initial states filled in."""
        count = self.packed.count
        states = rows.new_empty(count + self.packed.cells, self.weights.w.shape[1])
        if initial is None:
            states[:count].zero_()
        else:
            states[:count] = initial
        return states

    def _blocks(self, width: int) -> list[slice]:
        """Splits the packed rows into blocks for functions of `width` numbers a row."""
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
            # phi'(a), computed from s: states of relu are never negative
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
