"""The convolution's training pass: forward, and back to the gradients of its weights, inputs and state."""

from collections.abc import Generator

import torch

from seqloom_server.nn.forward import causal_conv
from seqloom_server.nn.gradients.factor_routing import FactorRoutes
from seqloom_server.nn.recurrence.packed_rows import PackedRows
from seqloom_server.nn.recurrence.yield_points import FLOPS_PER_ELEMENT, YieldBudget


class ConvBackward:
    """A batch's pass through the convolution. weight: [C, D, width], bias: [C].

    final_inputs: [width - 1, N, D] by rank, the state after the batch; None where the kernel has one step.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, packed: PackedRows, budget: YieldBudget) -> None:
        self._weight, self._bias = weight, bias
        self._budget = budget
        self._cells, self._count = packed.cells, packed.count
        self._unfolding = causal_conv.Unfolding(packed.batch_sizes, weight.shape[2], weight.device)
        self._flops = 2.0 * weight.numel() + FLOPS_PER_ELEMENT * weight[0].numel()  # of a row
        self._block = budget.block(self._flops, self._cells)
        self.final_inputs: torch.Tensor | None = None

    def forward(self, rows: torch.Tensor, inputs: torch.Tensor | None) -> Generator[None, None, torch.Tensor]:
        """Returns the outputs, [cells, C], of packed rows [cells, D]; inputs: the state before, zeros where None."""
        source = self._unfolding.source(rows, inputs)
        if self._unfolding.width > 1:
            self.final_inputs = self._unfolding.final_inputs(source)
        self._columns = source.new_empty(self._cells, self._weight[0].numel())
        self._outputs = source.new_empty(self._cells, len(self._weight))
        for start in range(0, self._cells, self._block):
            part = slice(start, min(start + self._block, self._cells))
            self._columns[part] = self._unfolding.columns(source, part.start, part.stop)
            causal_conv.forward(self._columns[part], self._weight, self._bias, out=self._outputs[part])
            if self._budget.due(self._flops * (part.stop - part.start)):
                yield
        return self._outputs

    def backward(
        self, d_outputs: torch.Tensor, d_final: torch.Tensor | None, routes: FactorRoutes, *, wanted: bool
    ) -> Generator[None, None, tuple[torch.Tensor, torch.Tensor] | None]:
        """Takes d_outputs [cells, C], which is overwritten; returns gradients of rows and state, None unless wanted."""
        delta = d_outputs.mul_(self._outputs.sign())  # no output of relu is below 0
        if routes:
            routes.put("conv", delta)
            routes.put("columns", self._columns)
            yield from routes.multiply("conv.weight", "conv.bias", "conv", "columns")
            routes.release()
        if not wanted:
            return None
        before = (self._unfolding.width - 1) * self._count
        d_source = delta.new_zeros(before + self._cells, self._weight.shape[1])
        flat = self._weight.flatten(1)
        for start in range(0, self._cells, self._block):
            part = delta[start : start + self._block]
            self._unfolding.fold_(d_source, part @ flat, start)
            if self._budget.due(self._flops * len(part)):
                yield
        if d_final is not None:
            self._unfolding.fold_final_(d_source, d_final)
        return self._unfolding.split(d_source)
