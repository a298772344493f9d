"""The reference backward pass: every cell's step in plain NumPy, for one sequence and one layer.

It shares no code with the fast implementation, which tests compare with it. The prefix `d_` means the gradient of the
loss: d_s is dL/ds_t, the sum of the gradients through o_t and through s_(t+1).
"""

from collections.abc import Callable, Mapping

import numpy as np

from seqloom_server.nn.reference import reference_forward
from seqloom_server.nn.reference.reference_forward import Array
from seqloom_server.nn.spec import ModelSpec

# d_s, d_c, x, s_(t-1), c_(t-1), U, W, b_u, b_w to: delta_in, delta_rec, d_s_(t-1) less W' delta_rec, d_c_(t-1)
Step = Callable[[Array, Array, Array, Array, Array, Array, Array, Array, Array], tuple[Array, Array, Array, Array]]


def cross_entropy(o: Array, y: Array) -> Array:
    """dL/do_t = p_t - onehot(y_t); zero where y_t is -100. o: [T, O], y: [T]."""
    d_o = reference_forward.softmax(o)
    d_o[np.arange(len(y)), np.maximum(y, 0)] -= 1
    return np.asarray(np.where(y[:, None] < 0, 0, d_o))


def mse(o: Array, y: Array) -> Array:
    """dL/do_t = 2 (o_t - y_t). o and y: [T, O]."""
    return np.asarray(2 * (o - y))


def elman_tanh(
    d_s: Array, d_c: Array, x: Array, s: Array, c: Array, u: Array, w: Array, b_u: Array, b_w: Array
) -> tuple[Array, Array, Array, Array]:
    """delta_t = dL/ds_t * (1 - s_t * s_t). d_s, s: [H]; s is s_(t-1); `d_c` passes through."""
    s_t, _ = reference_forward.elman_tanh(x, s, c, u, w, b_u, b_w)
    delta = d_s * (1 - s_t * s_t)
    return delta, delta, np.zeros_like(s), d_c


def elman_relu(
    d_s: Array, d_c: Array, x: Array, s: Array, c: Array, u: Array, w: Array, b_u: Array, b_w: Array
) -> tuple[Array, Array, Array, Array]:
    """delta_t = dL/ds_t where s_t > 0, else 0; otherwise as elman_tanh."""
    s_t, _ = reference_forward.elman_relu(x, s, c, u, w, b_u, b_w)
    delta = d_s * (s_t > 0)
    return delta, delta, np.zeros_like(s), d_c


def gru(
    d_s: Array, d_c: Array, x: Array, s: Array, c: Array, u: Array, w: Array, b_u: Array, b_w: Array
) -> tuple[Array, Array, Array, Array]:
    """Two deltas: (delta_r, delta_z, delta_n) for the inputs' side, (delta_r, delta_z, r * delta_n) for the states'.

    delta_n = dL/ds * (1 - z) * (1 - n * n), delta_z = dL/ds * (s_(t-1) - n) * z * (1 - z),
    delta_r = delta_n * (W_n s_(t-1) + b_wn) * r * (1 - r); and z * dL/ds goes on to s_(t-1).
    """
    r_x, z_x, n_x = np.split(u @ x + b_u, 3)
    r_s, z_s, n_s = np.split(w @ s + b_w, 3)
    r, z = _sigmoid(r_x + r_s), _sigmoid(z_x + z_s)
    n = np.tanh(n_x + r * n_s)
    delta_n = d_s * (1 - z) * (1 - n * n)
    delta_z = d_s * (s - n) * z * (1 - z)
    delta_r = delta_n * n_s * r * (1 - r)
    return np.concatenate([delta_r, delta_z, delta_n]), np.concatenate([delta_r, delta_z, r * delta_n]), z * d_s, d_c


def lstm(
    d_s: Array, d_c: Array, x: Array, s: Array, c: Array, u: Array, w: Array, b_u: Array, b_w: Array
) -> tuple[Array, Array, Array, Array]:
    """dL/dc_t += dL/ds_t * o * (1 - tanh(c_t)^2), then the four deltas; f * dL/dc_t goes on to c_(t-1).

    delta_i = dL/dc * g * i * (1 - i), delta_f = dL/dc * c_(t-1) * f * (1 - f), delta_g = dL/dc * i * (1 - g * g),
    delta_o = dL/ds * tanh(c_t) * o * (1 - o).
    """
    i, f, g, o = np.split(u @ x + w @ s + b_u + b_w, 4)
    i, f, g, o = _sigmoid(i), _sigmoid(f), np.tanh(g), _sigmoid(o)
    tanh_c = np.tanh(f * c + i * g)
    d_c = d_c + d_s * o * (1 - tanh_c * tanh_c)
    delta_i, delta_f = d_c * g * i * (1 - i), d_c * c * f * (1 - f)
    delta_g, delta_o = d_c * i * (1 - g * g), d_s * tanh_c * o * (1 - o)
    delta = np.concatenate([delta_i, delta_f, delta_g, delta_o])
    return delta, delta, np.zeros_like(s), f * d_c


def _sigmoid(a: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * a))


_STEPS: dict[tuple[str, str], tuple[Step, Callable[..., tuple[Array, Array]]]] = {
    ("elman", "tanh"): (elman_tanh, reference_forward.elman_tanh),
    ("elman", "relu"): (elman_relu, reference_forward.elman_relu),
    ("gru", "tanh"): (gru, reference_forward.gru),
    ("lstm", "tanh"): (lstm, reference_forward.lstm),
}


def backward(spec: ModelSpec, parameters: Mapping[str, Array], xs: Array, d_o: Array) -> dict[str, Array]:
    """Returns the gradients of one sequence, for one layer and s_0 = 0: by parameter, "inputs" and "initial_state".

    xs: [T, D]; d_o: dL/do_t, [T, O].
    """
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    u, w, b_u, b_w = weights = tuple(parameters[f"rnn.{name}_l0"] for name in names)
    v = parameters["output.weight"]
    step_back, step = _STEPS[spec.cell, spec.activation]
    s, c = [np.zeros(spec.hidden_size, xs.dtype)], [np.zeros(spec.hidden_size, xs.dtype)]
    for x in xs:
        after = step(x, s[-1], c[-1], *weights)
        s.append(after[0])
        c.append(after[1])
    found = {name: np.zeros_like(array) for name, array in parameters.items()}
    found["inputs"] = np.zeros_like(xs)
    d_s = d_c = np.zeros(spec.hidden_size, xs.dtype)  # through later steps
    for t in reversed(range(len(xs))):
        d_s = v.T @ d_o[t] + d_s
        delta_in, delta_rec, direct, d_c = step_back(d_s, d_c, xs[t], s[t], c[t], u, w, b_u, b_w)
        found["output.weight"] += np.outer(d_o[t], s[t + 1])
        found["output.bias"] += d_o[t]
        found["rnn.weight_ih_l0"] += np.outer(delta_in, xs[t])
        found["rnn.bias_ih_l0"] += delta_in
        found["rnn.weight_hh_l0"] += np.outer(delta_rec, s[t])
        found["rnn.bias_hh_l0"] += delta_rec
        found["inputs"][t] = u.T @ delta_in
        d_s = w.T @ delta_rec + direct
    found["initial_state"] = d_s
    return found
