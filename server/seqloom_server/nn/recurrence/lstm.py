"""The forward and backward pass of an LSTM layer over packed rows; dL/dc is carried from step to step."""

import torch

from seqloom_server.nn.recurrence.layer_scan import LayerScan, sigmoid_backward, tanh_backward
from seqloom_server.nn.recurrence.yield_points import FLOPS_PER_ELEMENT, Pieces, product


class LstmScan(LayerScan):
    """c_t = f * c_(t-1) + i * g, s_t = o * tanh(c_t).

    dL/dc_t += dL/ds_t * o * (1 - tanh(c_t)^2);
    delta_i = dL/dc * g * i * (1 - i), delta_f = dL/dc * c_(t-1) * f * (1 - f),
    delta_g = dL/dc * i * (1 - g * g), delta_o = dL/ds * tanh(c_t) * o * (1 - o);
    dL/dc_(t-1) = dL/dc_t * f, dL/ds_(t-1) += W' delta_t.
    """

    gates = 4

    def forward(self, rows: torch.Tensor, initial: tuple[torch.Tensor, ...] | None) -> Pieces:
        u, w, b_u, b_w = self.weights
        packed, hidden = self.packed, w.shape[1]
        self.states = self._buffer(rows, initial[0] if initial else None)
        self.cells = self._buffer(rows, initial[1] if initial else None)
        self._gates = rows.new_empty(packed.cells, 4 * hidden)
        self._tanh = rows.new_empty(packed.cells, hidden)  # of c_t
        yield from product(self.budget, self._gates, rows, u.t(), bias=b_u + b_w)
        transposed = w.t()
        i, f, g, o = (packed.steps(gate) for gate in self._gates.chunk(4, 1))
        steps = zip(
            packed.steps(self._gates),
            packed.steps(self._gates[:, : 2 * hidden]),
            i,
            f,
            g,
            o,
            packed.steps_before(self.states),
            packed.steps_before(self.cells),
            packed.steps(self.states[packed.count :]),
            packed.steps(self.cells[packed.count :]),
            packed.steps(self._tanh),
            self.costs,
            strict=True,
        )
        for gates, i_f, i_t, f_t, g_t, o_t, s_before, c_before, s, c, tanh_c, cost in steps:
            gates.addmm_(s_before, transposed)
            i_f.sigmoid_()
            torch.mul(f_t, c_before, out=c)
            torch.tanh(c.addcmul_(i_t, g_t.tanh_()), out=tanh_c)
            torch.mul(o_t.sigmoid_(), tanh_c, out=s)
            if self.budget.due(cost):
                yield

    def backward(self, d_states: torch.Tensor, d_cell: torch.Tensor | None) -> Pieces:
        assert d_cell is not None
        assert self.cells is not None
        packed, w = self.packed, self.weights.w
        hidden = w.shape[1]
        before = packed.before(self.cells)
        forget = before.new_empty(packed.cells, hidden)
        # the gates are replaced by the deltas' factors: of dL/dc for the first three, of dL/ds for the last; tanh(c) by
        # the factor of dL/ds in dL/dc
        for block in self._blocks(6 * hidden):
            i, f, g, o = self._gates[block].chunk(4, 1)
            tanh_c = self._tanh[block]
            forget[block] = f
            f.copy_(sigmoid_backward(before[block], f))
            f_i = sigmoid_backward(g, i)
            g.copy_(tanh_backward(i, g))
            i.copy_(f_i)
            f_o = sigmoid_backward(tanh_c, o)
            tanh_c.copy_(tanh_backward(o, tanh_c))
            o.copy_(f_o)
            if self.budget.due(FLOPS_PER_ELEMENT * 6 * i.numel()):
                yield
        del before
        delta = self._gates
        steps = zip(
            packed.steps(delta, back=True),
            packed.steps(delta.view(packed.cells, 4, hidden)[:, :3], back=True),
            packed.steps(delta[:, 3 * hidden :], back=True),
            packed.steps(self._tanh, back=True),
            packed.steps(forget, back=True),
            packed.steps(d_states[packed.count :], back=True),
            packed.steps_before(d_states, back=True),
            reversed(self.costs),
            strict=True,
        )
        for d, d_ifg, d_o, slope, f_t, d_s, d_before, cost in steps:
            d_c = d_cell[: len(d)].addcmul_(d_s, slope)
            d_ifg.mul_(d_c.unsqueeze(1))
            d_o.mul_(d_s)
            d_c.mul_(f_t)
            d_before.addmm_(d, w)
            if self.budget.due(cost):
                yield
        del self._gates, self._tanh
        self.delta_in = self.delta_rec = delta
