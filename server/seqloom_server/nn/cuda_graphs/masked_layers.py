"""The recurrent layers over a padded batch, T steps by N sequences, with a mask for the padding.

Only fixed shapes, and no control flow that depends on the lengths, so that the kernels can be captured as a CUDA graph.
A padded row leaves its sequence's state unchanged, and its outputs are discarded; rows never depend on each other.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from seqloom_server.nn.cuda_graphs.buckets import GRID, MAX_PADDING, Grid, Rectangle, rectangle
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.spec import ModelSpec

State = tuple[torch.Tensor, ...]
_Step = Callable[["_Layer", torch.Tensor, torch.Tensor, State], State]


class _Layer(NamedTuple):
    """u [D, gates H], w [H, gates H], b_u and b_w [gates H]; except for a GRU, b_u is the sum of both biases."""

    u: torch.Tensor
    w: torch.Tensor
    b_u: torch.Tensor
    b_w: torch.Tensor


def takes(spec: ModelSpec) -> bool:
    """Returns whether networks of this kind are supported: neither bidirectional, with a convolution, nor in int8."""
    return not (spec.bidirectional or spec.conv_channels or spec.precision == "int8")


class MaskedLayers:
    """A network's recurrent layers over rectangles. max_padding: the largest share of padding in a rectangle.

    Weights and products have the network's precision; with bfloat16 the sums of GRU and LSTM stay in float32.
    """

    def __init__(self, network: Network, *, max_padding: float = MAX_PADDING, grid: Grid = GRID) -> None:
        assert takes(network.spec)
        self.spec = network.spec
        self._max_padding, self.grid = max_padding, grid
        half = network.spec.precision == "bf16"
        self.dtype = torch.bfloat16 if half else getattr(torch, network.spec.dtype)
        self._layers = _layers(network, self.dtype)
        step = {"elman": _elman, "gru": _gru, "lstm": _lstm}[network.spec.cell]
        self._step: _Step = _relu if network.spec.activation == "relu" else step

    @property
    def nbytes(self) -> int:
        """Bytes of copies of the network's weights."""
        if self.spec.precision != "bf16":
            return 0  # except for sums of biases
        return sum(tensor.nbytes for layer in self._layers for tensor in layer)

    def rectangle(self, batch_sizes: npt.NDArray[np.int64]) -> Rectangle | None:
        """Returns the rectangle to run a batch in, or None if it would have too much padding.

        batch_sizes: [T], descending from N, the number of sequences at each step.
        """
        return rectangle(len(batch_sizes), int(batch_sizes[0]), int(batch_sizes.sum()), self._max_padding, self.grid)

    def advance(
        self, rows: torch.Tensor, shape: Rectangle, lengths: torch.Tensor, state: State
    ) -> tuple[torch.Tensor, State]:
        """Advances N sequences, each by its own number of steps; returns (hidden, new state), as Network.advance().

        rows: [T rows, D], time-major, finite, padding included. lengths: int64 [N], at most T, on the device. state:
        [layers, N, H] per part. hidden: [T rows, H]; padded rows are undefined.
        """
        count = len(lengths)
        with torch.inference_mode():
            left = torch.nn.functional.pad(lengths, (0, shape.rows - count))
            parts = tuple(torch.nn.functional.pad(part, (0, 0, 0, shape.rows - count)) for part in state)
            hidden, parts = self._blocks(rows.view(shape.steps, shape.rows, -1), shape, left, parts)
        return hidden.flatten(0, 1), tuple(part[:, :count] for part in parts)

    def _blocks(
        self, rows: torch.Tensor, shape: Rectangle, left: torch.Tensor, state: State
    ) -> tuple[torch.Tensor, State]:
        """Runs a rectangle, [T, rows, D]. left: [rows], the steps of each sequence, 0 for padded rows."""
        return self.block(rows, left, state)

    def block(
        self, rows: torch.Tensor, left: torch.Tensor, state: State, out: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, State]:
        """Runs rows [T, N, D] of sequences with `left` [N] steps left, from a state [layers, N, H] per part.

        out: buffer for the top layer's states, [T, N, H], if given.
        """
        steps, count = rows.shape[:2]
        valid = torch.arange(steps, device=rows.device)[:, None, None] < left[:, None]  # [T, N, 1]
        after: list[State] = []
        rows = rows.to(self.dtype)
        for number, layer in enumerate(self._layers):
            products = torch.addmm(layer.b_u, rows.reshape(steps * count, -1), layer.u).view(steps, count, -1)
            parts = tuple(part[number] for part in state)
            top = number == len(self._layers) - 1
            hidden = out if top and out is not None else rows.new_empty(steps, count, self.spec.hidden_size)
            narrow = parts[0].to(self.dtype)
            for step in range(steps):
                new = self._step(layer, products[step], narrow, parts)
                # where() writes the state directly into the outputs
                if new[0].dtype is self.dtype:
                    narrow = torch.where(valid[step], new[0], narrow, out=hidden[step])
                    state_now = narrow
                else:
                    state_now = torch.where(valid[step], new[0], parts[0])
                    narrow = hidden[step].copy_(state_now)
                others = (torch.where(valid[step], *pair) for pair in zip(new[1:], parts[1:], strict=True))
                parts = (state_now, *others)
            after.append(parts)
            rows = hidden
        return rows, tuple(
            torch.stack(part).to(before) for part, before in zip(zip(*after, strict=True), state, strict=True)
        )


def _layers(network: Network, dtype: torch.dtype) -> list[_Layer]:
    """Returns the weights of each layer, transposed, in the precision of the products."""
    parameters, layers = network.parameters(), []
    for layer in range(network.spec.num_layers):
        u, w, b_u, b_w = (
            parameters[f"rnn.{name}_l{layer}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        if network.spec.cell != "gru":  # whose recurrent bias is inside a product
            b_u = b_u + b_w
        layers.append(_Layer(u.t().to(dtype), w.t().to(dtype), b_u.to(dtype), b_w.to(dtype)))
    return layers


# One step of a layer. a: [N, gates H], U x_t and biases. s: [N, H], the state in the products' precision. parts: the
# state, [N, H] per part. Each returns the new parts.


def _elman(layer: _Layer, a: torch.Tensor, s: torch.Tensor, parts: State) -> State:
    return (torch.addmm(a, s, layer.w).tanh_(),)


def _relu(layer: _Layer, a: torch.Tensor, s: torch.Tensor, parts: State) -> State:
    return (torch.addmm(a, s, layer.w).relu_(),)


def _gru(layer: _Layer, a: torch.Tensor, s: torch.Tensor, parts: State) -> State:
    wide, width = parts[0], len(layer.w)
    by_state = torch.addmm(layer.b_w, s, layer.w).to(wide.dtype)
    r, z = torch.add(a[:, : 2 * width], by_state[:, : 2 * width]).sigmoid_().chunk(2, 1)
    n = torch.addcmul(a[:, 2 * width :].to(wide.dtype), r, by_state[:, 2 * width :]).tanh_()
    return (torch.lerp(n, wide, z),)


def _lstm(layer: _Layer, a: torch.Tensor, s: torch.Tensor, parts: State) -> State:
    width = len(layer.w)
    gates = torch.addmm(a, s, layer.w).to(parts[1].dtype)
    i, f = gates[:, : 2 * width].sigmoid().chunk(2, 1)
    c = torch.addcmul(f * parts[1], i, gates[:, 2 * width : 3 * width].tanh())
    return (gates[:, 3 * width :].sigmoid().mul_(c.tanh()), c)
