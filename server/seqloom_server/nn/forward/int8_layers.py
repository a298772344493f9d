"""Runs the recurrent layers step by step with weights and states in 8 bits, sums and functions in float32.

A hidden state lies in [-1, 1], whatever its cell: a tanh, or a mean of such, or a share of one. So its scale is fixed,
and a row's states have the same bits alone and in any batch: products are exact (int8_linear.py), sums and products of
numbers are rounded one by one, and the only function is tanh, which torch computes alike wherever a number stands. Its
sigmoid does not, nor do calls that multiply and add in one, whose last numbers of a tensor are computed otherwise.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from seqloom_server.nn.forward.cpu_layers import Steps
from seqloom_server.nn.forward.int8_linear import Int8Linear, quantise_states, quantise_states_
from seqloom_server.nn.spec import ModelSpec

State = tuple[torch.Tensor, ...]
# a: [n, gates H], U x_t. by_state: [n, gates H], W s_(t-1) and the bias. parts: the states, [n, H] each, of which it
# updates the LSTM's c. out: [n, H], for s_t.
_Step = Callable[[torch.Tensor, torch.Tensor, list[torch.Tensor], torch.Tensor], None]


class _Weights(NamedTuple):
    """The weights of one layer and direction: u for the inputs, w for the states, with the biases."""

    u: Int8Linear
    w: Int8Linear


class Int8Layers:
    """The recurrent layers of a network. parameters: float32, by the names of spec.parameter_shapes()."""

    def __init__(self, spec: ModelSpec, parameters: Mapping[str, torch.Tensor]) -> None:
        self._reads_states = spec.cell == "gru"  # beside their whole numbers
        self._step: _Step = {"elman": _elman, "gru": _gru, "lstm": _lstm}[spec.cell]
        self._layers: list[list[_Weights]] = []
        for layer in range(spec.num_layers):
            directions = []
            for direction in ("", "_reverse")[: spec.directions]:
                u, w, b_u, b_w = (
                    parameters[f"rnn.{name}_l{layer}{direction}"]
                    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                )
                apart = spec.cell == "gru"  # whose recurrent bias is inside a product
                by_input = Int8Linear(u, b_u if apart else None, "states" if layer else "rows")
                directions.append(_Weights(by_input, Int8Linear(w, b_w if apart else b_u + b_w, "states")))
            self._layers.append(directions)
        self.nbytes = sum(each.u.packed_bytes + each.w.packed_bytes for layers in self._layers for each in layers)

    def advance(self, rows: torch.Tensor, batch_sizes: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Does as Network.advance()."""
        sizes = batch_sizes.tolist()
        after = tuple(part.clone() for part in state)
        for layer, directions in enumerate(self._layers):
            hidden = []
            for direction, weights in enumerate(directions):
                row = layer * len(directions) + direction
                steps = Steps(weights.u(rows), sizes, back=direction > 0)
                hidden.append(self._run(weights.w, steps, [part[row] for part in after]))
            rows = hidden[0] if len(hidden) == 1 else torch.cat(hidden, 1)
        return rows, after

    def _run(self, w: Int8Linear, steps: Steps, states: list[torch.Tensor]) -> torch.Tensor:
        """Runs the steps in order; updates the states [N, H] in place; returns s_t of every step, packed."""
        hidden = steps.inputs.new_empty(len(steps.inputs), states[0].shape[1])
        quantised, scratch = quantise_states(states[0]), torch.empty_like(states[0])
        views = steps.views
        following = [0] * len(views) if self._reads_states else [*map(len, views[1:]), 0]
        for a, out, onward in zip(views, steps.split(hidden), following, strict=True):
            count = len(a)
            self._step(a, w.product(quantised, count), [part[:count] for part in states], out)
            quantise_states_(quantised, out, scratch)
            if onward < count:  # of the others the next step makes new ones
                states[0][onward:count].copy_(out[onward:])
        return hidden


def _elman(a: torch.Tensor, by_state: torch.Tensor, parts: list[torch.Tensor], out: torch.Tensor) -> None:
    torch.tanh(by_state.add_(a), out=out)


def _gru(a: torch.Tensor, by_state: torch.Tensor, parts: list[torch.Tensor], out: torch.Tensor) -> None:
    s, width = parts[0], parts[0].shape[1]
    r, z = _sigmoid_(by_state[:, : 2 * width].add(a[:, : 2 * width])).chunk(2, 1)
    n = by_state[:, 2 * width :].mul(r).add_(a[:, 2 * width :]).tanh_()
    torch.sub(s, n, out=out).mul_(z).add_(n)  # (1 - z) n + z s, never outside [-1, 1]


def _lstm(a: torch.Tensor, by_state: torch.Tensor, parts: list[torch.Tensor], out: torch.Tensor) -> None:
    c, width = parts[1], parts[1].shape[1]
    gates = by_state.add_(a)
    g = gates[:, 2 * width : 3 * width].tanh()
    i, f, _, o = _sigmoid_(gates).chunk(4, 1)
    c.mul_(f).add_(g.mul_(i))
    torch.tanh(c, out=out).mul_(o)


def _sigmoid_(a: torch.Tensor) -> torch.Tensor:
    return a.mul_(0.5).tanh_().mul_(0.5).add_(0.5)
