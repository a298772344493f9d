"""Runs the recurrent layers on the CPU, step by step with packed weights, in float32 or with products in bfloat16.

In bfloat16 a product is summed in float32 and rounded once. Sums over the steps, a GRU's state and an LSTM's c_t, stay
in float32; an Elman state is the value of a function, in which rounding errors do not accumulate.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from seqloom_server.nn.forward.packed_linear import PackedLinear
from seqloom_server.nn.spec import ModelSpec

State = tuple[torch.Tensor, ...]
HALF = torch.bfloat16


class _Weights(NamedTuple):
    """The weights of one layer and direction: u for the inputs, w for the states."""

    u: PackedLinear
    w: PackedLinear


class Steps(NamedTuple):
    """The steps of packed rows `inputs`, in the order in which they run; back: from the last to the first."""

    inputs: torch.Tensor
    sizes: list[int]
    back: bool

    @property
    def views(self) -> list[torch.Tensor]:
        return self.split(self.inputs)

    def split(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Returns views of packed rows, one for each step."""
        views = list(rows.split_with_sizes(self.sizes))
        return views[::-1] if self.back else views


class CpuLayers:
    """The recurrent layers of a float32 network.

    parameters: by the names of spec.parameter_shapes(). dtype: of the products, float32 or bfloat16; for bfloat16 the
    weights are copied.
    """

    def __init__(self, spec: ModelSpec, parameters: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._layers: list[list[_Weights]] = []
        self.nbytes = 0
        for layer in range(spec.num_layers):
            directions = []
            for direction in ("", "_reverse")[: spec.directions]:
                u, w, b_u, b_w = (
                    parameters[f"rnn.{name}_l{layer}{direction}"]
                    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                )
                if spec.cell == "gru":  # whose recurrent bias is inside a product
                    weights = _Weights(self._linear(u, b_u), self._linear(w, b_w))
                else:
                    weights = _Weights(self._linear(u, b_u + b_w), self._linear(w, None))
                directions.append(weights)
            self._layers.append(directions)
        self._cell = spec.cell
        self._relu = spec.activation == "relu"

    def _linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear:
        linear = PackedLinear(weight.to(self._dtype), None if bias is None else bias.to(self._dtype))
        copied = 0 if weight.dtype is self._dtype else linear.itemsize * weight.numel()
        self.nbytes += linear.packed_bytes or copied
        return linear

    def advance(self, rows: torch.Tensor, batch_sizes: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Does as Network.advance(), with states in float32; hidden: [cells, outputs_width] of the products' dtype."""
        # not an attribute: an object that refers to itself is only freed by the garbage collector, which rarely runs
        run = {"elman": self._elman, "gru": self._gru, "lstm": self._lstm}[self._cell]
        sizes = batch_sizes.tolist()
        after = tuple(part.clone() for part in state)
        rows = rows.to(self._dtype)
        for layer, directions in enumerate(self._layers):
            hidden = []
            for direction, weights in enumerate(directions):
                row = layer * len(directions) + direction
                steps = Steps(weights.u(rows), sizes, back=direction > 0)
                hidden.append(run(weights.w, steps, [part[row] for part in after]))
            rows = hidden[0] if len(hidden) == 1 else torch.cat(hidden, 1)
        return rows, after

    # Each of these runs the steps in order. steps: the products of the inputs. states: [N, H] per part, of which a step
    # uses the first rows; updated in place to the last states. Each returns s_t of every step, packed.

    def _elman(self, w: PackedLinear, steps: Steps, states: list[torch.Tensor]) -> torch.Tensor:
        last = states[0]
        first, views = last.to(self._dtype), steps.views
        before = first[: len(views[0])]
        for a, onward in zip(views, [*map(len, views[1:]), 0], strict=True):
            total = w.plus(before, a)
            before = torch.clamp_min(total, 0, out=a) if self._relu else torch.tanh(total, out=a)
            if onward < len(a):  # the others' next step makes new ones
                last[onward : len(a)] = a[onward:]
                before = a[:onward]
            elif onward > len(a):  # backwards shorter sequences begin later
                before = torch.cat((a, first[len(a) : onward]))
        return steps.inputs

    def _gru(self, w: PackedLinear, steps: Steps, states: list[torch.Tensor]) -> torch.Tensor:
        s, width = states[0], states[0].shape[1]
        narrow = s.to(self._dtype)
        hidden = steps.inputs.new_empty(len(steps.inputs), width)
        for a, out in zip(steps.views, steps.split(hidden), strict=True):
            before = s[: len(a)]
            by_state = w(narrow[: len(a)]).float()
            r, z = a[:, : 2 * width].add(by_state[:, : 2 * width]).sigmoid_().chunk(2, 1)
            n = torch.addcmul(a[:, 2 * width :], r, by_state[:, 2 * width :]).tanh_()
            torch.lerp(n, before, z, out=before)
            out.copy_(before)
            narrow[: len(a)] = out
        return hidden

    def _lstm(self, w: PackedLinear, steps: Steps, states: list[torch.Tensor]) -> torch.Tensor:
        (s, c), width = states, states[0].shape[1]
        narrow = s.to(self._dtype)
        hidden = steps.inputs.new_empty(len(steps.inputs), width)
        for a, out in zip(steps.views, steps.split(hidden), strict=True):
            cell = c[: len(a)]
            gates = w.plus(narrow[: len(a)], a).float()
            g = gates[:, 2 * width : 3 * width].tanh()
            i, f, _, o = gates.sigmoid_().chunk(4, 1)  # one call for all gates is faster than one for each
            cell.mul_(f).addcmul_(i, g)
            torch.mul(o, torch.tanh(cell), out=out)
            narrow[: len(a)] = out
        s.copy_(narrow)
        return hidden
