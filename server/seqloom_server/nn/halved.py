"""The forward pass with weights and products in bfloat16, the sums in float32: half the bytes, about twice the speed.

A product's terms are summed in float32 and rounded to bfloat16 once. What a cell adds up from step to step, a GRU's
state and an LSTM's c_t, stays in float32; Elman's state is a function's value, which rounding does not accumulate in.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from seqloom_server.nn.spec import ModelSpec

State = tuple[torch.Tensor, ...]
HALF = torch.bfloat16


class _Weights(NamedTuple):
    """One layer's and direction's: u [D, gates H], w [H, gates H], b_u and b_w [gates H]."""

    u: torch.Tensor
    w: torch.Tensor
    b_u: torch.Tensor
    b_w: torch.Tensor


class _Steps(NamedTuple):
    """The steps of packed rows `inputs` in the order in which they are walked."""

    inputs: torch.Tensor
    sizes: list[int]
    back: bool

    @property
    def views(self) -> list[torch.Tensor]:
        return self.of(self.inputs)

    def of(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Views of packed rows, one a step."""
        views = list(rows.split_with_sizes(self.sizes))
        return views[::-1] if self.back else views


class HalvedLayers:
    """The recurrent layers of a network on one device, their weights in bfloat16.

    parameters: float32, by the names of spec.parameter_shapes(); they are copied.
    """

    def __init__(self, spec: ModelSpec, parameters: Mapping[str, torch.Tensor]) -> None:
        self._spec = spec
        self._layers: list[list[_Weights]] = []
        for layer in range(spec.num_layers):
            directions = []
            for direction in ("", "_reverse")[: spec.directions]:
                u, w, b_u, b_w = (
                    parameters[f"rnn.{name}_l{layer}{direction}"]
                    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                )
                if spec.cell != "gru":  # whose recurrent bias stands inside of a product
                    b_u, b_w = b_u + b_w, torch.zeros_like(b_w)
                directions.append(_Weights(u.t().to(HALF), w.t().to(HALF), b_u.to(HALF), b_w.to(HALF)))
            self._layers.append(directions)
        self._walk = {"elman": self._elman, "gru": self._gru, "lstm": self._lstm}[spec.cell]
        self._phi = torch.relu_ if spec.activation == "relu" else torch.tanh_

    @property
    def nbytes(self) -> int:
        """Bytes of the copies."""
        return sum(tensor.nbytes for directions in self._layers for weights in directions for tensor in weights)

    def advance(self, rows: torch.Tensor, batch_sizes: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Does as Network.advance, with states in float32; hidden: [cells, spec.outputs_width] in bfloat16."""
        sizes = batch_sizes.tolist()
        after = tuple(part.clone() for part in state)
        rows = rows.to(HALF)
        for layer, directions in enumerate(self._layers):
            sides = []
            for side, weights in enumerate(directions):
                row = layer * len(directions) + side
                inputs = torch.addmm(weights.b_u, rows, weights.u)
                sides.append(self._walk(weights, _Steps(inputs, sizes, back=side > 0), [part[row] for part in after]))
            rows = sides[0] if len(sides) == 1 else torch.cat(sides, 1)
        return rows, after

    # Each of these walks the steps in the order given, views of one buffer of input products. states: [N, H] per part,
    # of which a step has the first ones; in the end they are the last ones. They return s_t of every step, packed.

    def _elman(self, weights: _Weights, steps: _Steps, states: list[torch.Tensor]) -> torch.Tensor:
        last = states[0]
        s = last.to(HALF)
        for a in steps.views:
            before = s[: len(a)]
            before.copy_(self._phi(a.addmm_(before, weights.w)))
        last.copy_(s)
        return steps.inputs

    def _gru(self, weights: _Weights, steps: _Steps, states: list[torch.Tensor]) -> torch.Tensor:
        s, width = states[0], weights.w.shape[0]
        half = s.to(HALF)
        hidden = steps.inputs.new_empty(len(steps.inputs), width)
        for a, out in zip(steps.views, steps.of(hidden), strict=True):
            before, narrow = s[: len(a)], half[: len(a)]
            by_state = torch.addmm(weights.b_w, narrow, weights.w).float()
            r, z = a[:, : 2 * width].add(by_state[:, : 2 * width]).sigmoid_().chunk(2, 1)
            n = torch.addcmul(a[:, 2 * width :], r, by_state[:, 2 * width :]).tanh_()
            torch.lerp(n, before, z, out=before)
            narrow.copy_(before)
            out.copy_(before)
        return hidden

    def _lstm(self, weights: _Weights, steps: _Steps, states: list[torch.Tensor]) -> torch.Tensor:
        s, c = states
        half = s.to(HALF)
        hidden = steps.inputs.new_empty(len(steps.inputs), weights.w.shape[0])
        for a, out in zip(steps.views, steps.of(hidden), strict=True):
            narrow, cell = half[: len(a)], c[: len(a)]
            i, f, g, o = a.addmm_(narrow, weights.w).float().chunk(4, 1)
            cell.mul_(f.sigmoid_()).addcmul_(i.sigmoid_(), g.tanh_())
            torch.mul(o.sigmoid_(), torch.tanh(cell), out=narrow)
            out.copy_(narrow)
        s.copy_(half)
        return hidden
