"""The reference forward pass: every cell in plain NumPy, one sequence and one step at a time.

It shares no code with the fast implementation, which tests compare with it. Weights have torch.nn's names; U is
weight_ih, W is weight_hh, and b the sum of both biases, except for a GRU.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from seqloom_server.nn.spec import ModelSpec

Array = npt.NDArray[Any]
Step = Callable[[Array, Array, Array, Array, Array, Array, Array], tuple[Array, Array]]


def elman_tanh(x: Array, s: Array, c: Array, u: Array, w: Array, b_u: Array, b_w: Array) -> tuple[Array, Array]:
    """s_t = tanh(U x_t + W s_(t-1) + b). x: [D], s: [H], u: [H, D], w: [H, H]; `c`, [H], passes through."""
    return np.tanh(u @ x + w @ s + b_u + b_w), c


def elman_relu(x: Array, s: Array, c: Array, u: Array, w: Array, b_u: Array, b_w: Array) -> tuple[Array, Array]:
    """s_t = max(0, U x_t + W s_(t-1) + b); otherwise as elman_tanh."""
    return np.maximum(u @ x + w @ s + b_u + b_w, 0), c


def gru(x: Array, s: Array, c: Array, u: Array, w: Array, b_u: Array, b_w: Array) -> tuple[Array, Array]:
    """A gated recurrent unit, as torch.nn.GRU; u is [3H, D], w [3H, H], gates in the order r, z, n.

    r = sigmoid(U_r x + W_r s + b_r), z = sigmoid(U_z x + W_z s + b_z), n = tanh(U_n x + b_un + r * (W_n s + b_wn)),
    s_t = (1 - z) * n + z * s.
    """
    r_x, z_x, n_x = np.split(u @ x + b_u, 3)
    r_s, z_s, n_s = np.split(w @ s + b_w, 3)
    r, z = _sigmoid(r_x + r_s), _sigmoid(z_x + z_s)
    n = np.tanh(n_x + r * n_s)
    return (1 - z) * n + z * s, c


def lstm(x: Array, s: Array, c: Array, u: Array, w: Array, b_u: Array, b_w: Array) -> tuple[Array, Array]:
    """Long short-term memory, as torch.nn.LSTM; u is [4H, D], w [4H, H], gates in the order i, f, g, o.

    i, f, o = sigmoid(U x + W s + b), g = tanh(U x + W s + b), c_t = f * c + i * g, s_t = o * tanh(c_t).
    """
    i, f, g, o = np.split(u @ x + w @ s + b_u + b_w, 4)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(c), c


def conv(xs: Array, inputs: Array, k: Array, b: Array) -> Array:
    """y_t = max(0, sum over j of K_j x_(t-width+1+j) + b) for every step; K_j is k[:, :, j], the last one for x_t.

    xs: [T, D]; inputs: [width - 1, D], the inputs before x_1; k: [C, D, width]; b: [C]; returns [T, C].
    """
    width = k.shape[2]
    past = np.concatenate([inputs, xs])
    steps = [sum(k[:, :, j] @ past[t + j] for j in range(width)) + b for t in range(len(xs))]
    return np.asarray(np.maximum(np.array(steps, xs.dtype).reshape(len(xs), len(b)), 0))


def _sigmoid(a: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * a))


_STEPS: dict[tuple[str, str], Step] = {
    ("elman", "tanh"): elman_tanh,
    ("elman", "relu"): elman_relu,
    ("gru", "tanh"): gru,
    ("lstm", "tanh"): lstm,
}


def forward(
    spec: ModelSpec, parameters: Mapping[str, Array], xs: Array, state: tuple[Array, ...] | None = None
) -> tuple[Array, tuple[Array, ...]]:
    """Runs one sequence xs [T, D] from `state` (zeros by default); returns (hidden, final state).

    state: [rows, 1, width] per part of spec.state_shapes(). hidden: [T, H], or [T, 2 H] of two directions, s_t of the
    top layer, computed in the dtype given.
    """
    if state is None:
        state = tuple(np.zeros((rows, 1, width), xs.dtype) for rows, width in spec.state_shapes().values())
    parts = {name: part[:, 0].copy() for name, part in zip(spec.state_parts, state, strict=True)}
    if spec.conv_channels:
        inputs = parts.get("inputs", xs[:0])
        if "inputs" in parts:
            parts["inputs"] = np.concatenate([inputs, xs])[len(xs) :]
        xs = conv(xs, inputs, parameters["conv.weight"], parameters["conv.bias"])
    for layer in range(spec.num_layers):
        hidden = np.empty((len(xs), spec.outputs_width), xs.dtype)
        for direction, name in enumerate(("", "_reverse")[: spec.directions]):
            row = layer * spec.directions + direction
            columns = hidden[:, direction * spec.hidden_size : (direction + 1) * spec.hidden_size]
            weights = [
                parameters[f"rnn.{kind}_l{layer}{name}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ]
            s, c = parts["hidden"][row], parts.get("cell", parts["hidden"])[row]
            for t in reversed(range(len(xs))) if direction else range(len(xs)):
                s, c = _STEPS[spec.cell, spec.activation](xs[t], s, c, *weights)
                columns[t] = s
            parts["hidden"][row] = s
            if "cell" in parts:
                parts["cell"][row] = c
        xs = hidden
    return xs, tuple(part[:, None] for part in parts.values())


def logits(parameters: Mapping[str, Array], hidden: Array) -> Array:
    """o_t = V s_t + c, one step at a time. hidden: as forward() returns it; returns [T, O]."""
    v, c = parameters["output.weight"], parameters["output.bias"]
    return np.stack([v @ s + c for s in hidden]) if len(hidden) else np.empty((0, len(c)), hidden.dtype)


def log_softmax(o: Array) -> Array:
    """log p_t = o_t - log sum exp(o_t), with each step's maximum subtracted first. o: [T, O]."""
    shifted = o - o.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def softmax(o: Array) -> Array:
    """p_t = exp(o_t) / sum exp(o_t). o: [T, O]."""
    return np.asarray(np.exp(log_softmax(o)))
