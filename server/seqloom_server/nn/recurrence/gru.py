"""The forward and backward pass of a GRU layer over packed rows.

The bias b_wn is inside the product with r, so there are two deltas: of r, z, n for the inputs' side, and the same with
the factor r in its n part for the states' side.
"""

import torch

from seqloom_server.nn.recurrence.layer_scan import LayerScan, sigmoid_backward, tanh_backward
from seqloom_server.nn.recurrence.yield_points import FLOPS_PER_ELEMENT, Pieces, product


class GruScan(LayerScan):
    """s_t = (1 - z) * n + z * s_(t-1), with n = tanh(U_n x_t + b_un + r * (W_n s_(t-1) + b_wn)).

    delta_n = dL/ds * (1 - z) * (1 - n * n), delta_z = dL/ds * (s_(t-1) - n) * z * (1 - z),
    delta_r = delta_n * (W_n s_(t-1) + b_wn) * r * (1 - r);
    dL/ds_(t-1) += z * dL/ds_t + W' (delta_r, delta_z, r * delta_n).
    """

    gates = 3

    def forward(self, rows: torch.Tensor, initial: tuple[torch.Tensor, ...] | None) -> Pieces:
        u, w, b_u, b_w = self.weights
        packed, hidden = self.packed, w.shape[1]
        self.states = self._buffer(rows, initial[0] if initial else None)
        self._gates = rows.new_empty(packed.cells, 3 * hidden)
        self._recurrent = rows.new_empty(packed.cells, hidden)  # W_n s_(t-1) + b_wn
        bias = torch.cat([b_u[: 2 * hidden] + b_w[: 2 * hidden], b_u[2 * hidden :]])
        yield from product(self.budget, self._gates, rows, u.t(), bias=bias)
        w_rz, w_n, b_wn = w[: 2 * hidden].t(), w[2 * hidden :].t(), b_w[2 * hidden :]
        r, z, n = (packed.steps(gate) for gate in self._gates.chunk(3, 1))
        steps = zip(
            packed.steps(self._gates[:, : 2 * hidden]),
            r,
            z,
            n,
            packed.steps(self._recurrent),
            packed.steps_before(self.states),
            packed.steps(self.states[packed.count :]),
            self.costs,
            strict=True,
        )
        for rz_t, r_t, z_t, n_t, recurrent, before, s, cost in steps:
            rz_t.addmm_(before, w_rz).sigmoid_()
            torch.addmm(b_wn, before, w_n, out=recurrent)
            n_t.addcmul_(r_t, recurrent).tanh_()
            torch.lerp(n_t, before, z_t, out=s)
            if self.budget.due(cost):
                yield

    def backward(self, d_states: torch.Tensor, d_cell: torch.Tensor | None) -> Pieces:
        packed, w = self.packed, self.weights.w
        hidden = w.shape[1]
        before = packed.before(self.states)
        # the factors of dL/ds in (r delta_n, delta_r, delta_z, delta_n), in which both deltas are contiguous
        factors = before.new_empty(packed.cells, 4, hidden)
        for block in self._blocks(5 * hidden):
            r, z, n = self._gates[block].chunk(3, 1)
            f_n = tanh_backward(1 - z, n)
            factors[block, 3] = f_n
            torch.mul(f_n, r, out=factors[block, 0])
            factors[block, 1] = sigmoid_backward(f_n.mul_(self._recurrent[block]), r)
            factors[block, 2] = sigmoid_backward(before[block] - n, z)
            if self.budget.due(FLOPS_PER_ELEMENT * 5 * r.numel()):
                yield
        del self._recurrent, before
        flat = factors.flatten(1)
        w_nrz = torch.cat([w[2 * hidden :], w[: 2 * hidden]])
        steps = zip(
            packed.steps(factors, back=True),
            packed.steps(flat[:, : 3 * hidden], back=True),
            packed.steps(self._gates[:, hidden : 2 * hidden], back=True),
            packed.steps(d_states[packed.count :], back=True),
            packed.steps_before(d_states, back=True),
            reversed(self.costs),
            strict=True,
        )
        for factor, delta, z_t, d_s, d_before, cost in steps:
            factor.mul_(d_s.unsqueeze(1))
            d_before.addcmul_(d_s, z_t).addmm_(delta, w_nrz)
            if self.budget.due(cost):
                yield
        del self._gates
        self.delta_in = flat[:, hidden:]
        self.delta_rec = torch.cat([flat[:, hidden : 3 * hidden], flat[:, :hidden]], 1)
