"""The reference of a network in int8: plain NumPy, one sequence and one step at a time, sums in whole numbers.

It shares no code with the fast implementation, which has the same bits with the same tanh: every other operation is
exact, or one operation of float32. Weights have torch.nn's names.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from seqloom_server.nn.spec import ModelSpec

Array = npt.NDArray[Any]
Tanh = Callable[[Array], Array]

_F = np.float32
_LEAST = _F(1e-36)


def scales_of(x: Array) -> Array:
    """Returns the scale of each row of x [rows, K], [rows]: its largest magnitude stands for 127."""
    return np.asarray(np.maximum(np.abs(x).max(axis=1) / _F(127), _LEAST))


def whole_weights(weight: Array) -> tuple[Array, Array]:
    """Returns weights [O, K] as int64 from -127 to 127, and the scale of each row, [O]."""
    scales = scales_of(weight)
    return np.rint(weight / scales[:, None]).astype(np.int64), scales


def product(q: Array, weight: Array, scale: Array) -> Array:
    """Returns q W' as float32 [O]: sums of whole numbers, rounded to float32, times `scale` [O]. q: int64 [K]."""
    sums = weight @ q
    assert np.abs(sums).max(initial=0) < 2**31
    return np.asarray(sums.astype(_F) * scale)


def of_row(x: Array, weight: Array) -> Array:
    """Returns x W', float32 [O], of an input x [K], which has a scale of its own."""
    numbers, scales = whole_weights(weight)
    scale = scales_of(x[None])[0]
    return np.asarray(product(_rounded(x / scale), numbers, scales) * scale)


def of_state(s: Array, weight: Array) -> Array:
    """Returns s W', float32 [O], of a state s [K] in [-1, 1], whose scale is 1 / 127."""
    numbers, scales = whole_weights(weight)
    return product(_rounded(s * _F(127)), numbers, scales / _F(127))


def forward(
    spec: ModelSpec, parameters: Mapping[str, Array], xs: Array, state: tuple[Array, ...], tanh: Tanh = np.tanh
) -> tuple[Array, tuple[Array, ...]]:
    """Runs one sequence xs [T, D]; returns (hidden [T, outputs_width], final state), as reference_forward does."""
    parts = {name: part[:, 0].copy() for name, part in zip(spec.state_parts, state, strict=True)}
    if spec.conv_channels:
        past = np.concatenate([parts.get("inputs", xs[:0]), xs])
        if "inputs" in parts:
            parts["inputs"] = past[len(xs) :]
        kernel, bias = parameters["conv.weight"].reshape(spec.conv_channels, -1), parameters["conv.bias"]
        windows = [past[t : t + spec.conv_width].T.reshape(-1) for t in range(len(xs))]
        xs = np.stack([np.maximum(of_row(window, kernel) + bias, 0) for window in windows])
    for layer in range(spec.num_layers):
        hidden = np.empty((len(xs), spec.outputs_width), _F)
        for direction, name in enumerate(("", "_reverse")[: spec.directions]):
            row = layer * spec.directions + direction
            columns = hidden[:, direction * spec.hidden_size : (direction + 1) * spec.hidden_size]
            u, w, b_u, b_w = (
                parameters[f"rnn.{kind}_l{layer}{name}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            s, c = parts["hidden"][row], parts.get("cell", parts["hidden"])[row]
            for t in reversed(range(len(xs))) if direction else range(len(xs)):
                by_input, by_state = (of_state if layer else of_row)(xs[t], u), of_state(s, w)
                if spec.cell == "gru":
                    s = _gru(by_input + b_u, by_state + b_w, s, tanh)
                elif spec.cell == "lstm":
                    s, c = _lstm(by_state + (b_u + b_w) + by_input, c, tanh)
                else:
                    s = tanh(by_state + (b_u + b_w) + by_input)
                columns[t] = s
            parts["hidden"][row] = s
            if "cell" in parts:
                parts["cell"][row] = c
        xs = hidden
    return xs, tuple(part[:, None] for part in parts.values())


def logits(parameters: Mapping[str, Array], hidden: Array) -> Array:
    """o_t = V s_t + c of each step, float32 [T, O]."""
    return np.stack([of_state(s, parameters["output.weight"]) + parameters["output.bias"] for s in hidden])


def _gru(by_input: Array, by_state: Array, s: Array, tanh: Tanh) -> Array:
    r_x, z_x, n_x = np.split(by_input, 3)
    r_s, z_s, n_s = np.split(by_state, 3)
    r, z = _sigmoid(r_s + r_x, tanh), _sigmoid(z_s + z_x, tanh)
    n = tanh(r * n_s + n_x)
    return np.asarray((s - n) * z + n)


def _lstm(gates: Array, c: Array, tanh: Tanh) -> tuple[Array, Array]:
    i, f, g, o = np.split(gates, 4)
    c = c * _sigmoid(f, tanh) + tanh(g) * _sigmoid(i, tanh)
    return np.asarray(tanh(c) * _sigmoid(o, tanh)), c


def _sigmoid(a: Array, tanh: Tanh) -> Array:
    return np.asarray(tanh(a * _F(0.5)) * _F(0.5) + _F(0.5))


def _rounded(x: Array) -> Array:
    """Rounds float32 to whole numbers: a half goes up."""
    return np.asarray(np.floor(x + _F(128.5)).astype(np.int64) - 128)
