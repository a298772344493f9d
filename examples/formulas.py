"""Computes one Elman layer and its output layer in numpy, forward and backward, step by step as in the formulas."""

from collections.abc import Mapping

import numpy as np

Arrays = dict[str, np.ndarray]

FORMULAS = {
    "dL/do_t": "p_t - onehot(y_t)",
    "dL/ds_t": "V' dL/do_t + W' delta_(t+1)",
    "delta_t": "dL/ds_t * (1 - s_t^2)",
    "dL/dx_t": "U' delta_t",
    "dL/ds_0": "W' delta_1",
    "dL/dV": "sum of dL/do_t s_t'",
    "dL/dU": "sum of delta_t x_t'",
    "dL/dW": "sum of delta_t s_(t-1)'",
    "dL/dc": "sum of dL/do_t",
    "dL/db": "sum of delta_t",
}
"""The formulas of the gradients that `backward` returns, by name."""


def forward(weights: Mapping[str, np.ndarray], xs: np.ndarray) -> Arrays:
    """Runs one sequence [T, D]; each returned array has a row for each step. weights: with torch.nn's names."""
    U, W = weights["rnn.weight_ih_l0"], weights["rnn.weight_hh_l0"]
    V, c = weights["output.weight"], weights["output.bias"]
    b = weights["rnn.bias_ih_l0"] + weights["rnn.bias_hh_l0"]  # torch.nn has two, whose sum is what counts
    s_t = np.zeros(len(W))
    rows: dict[str, list[np.ndarray]] = {"hidden": [], "logits": [], "probs": []}
    for x_t in xs:
        s_t = np.tanh(U @ x_t + W @ s_t + b)
        o_t = V @ s_t + c
        p_t = np.exp(o_t - o_t.max())
        p_t /= p_t.sum()
        for name, row in zip(rows, (s_t, o_t, p_t), strict=True):
            rows[name].append(row)
    return {name: np.array(each) for name, each in rows.items()}


def loss(probs: np.ndarray, y: np.ndarray) -> float:
    """L = sum over t of -log p_t[y_t]. probs: [T, O], y: [T]."""
    return float(-np.log(probs[np.arange(len(y)), y]).sum())


def backward(weights: Mapping[str, np.ndarray], xs: np.ndarray, y: np.ndarray) -> Arrays:
    """Returns every gradient of the loss by its name in FORMULAS; those of steps have a row for each step, [T, ...]."""
    W, V = weights["rnn.weight_hh_l0"], weights["output.weight"]
    U = weights["rnn.weight_ih_l0"]
    steps = forward(weights, xs)
    s, p = steps["hidden"], steps["probs"]
    do = p - np.eye(p.shape[1])[y]
    ds, delta = np.empty_like(s), np.empty_like(s)
    arrow = np.zeros(s.shape[1])  # what comes back from the next step, of which the last has none
    for t in reversed(range(len(xs))):
        ds[t] = V.T @ do[t] + arrow
        delta[t] = ds[t] * (1 - s[t] ** 2)
        arrow = W.T @ delta[t]
    before = np.concatenate([np.zeros((1, s.shape[1])), s[:-1]])  # s_(t-1), with s_0 = 0
    return {
        "dL/do_t": do,
        "dL/ds_t": ds,
        "delta_t": delta,
        "dL/dx_t": delta @ U,
        "dL/ds_0": arrow,
        "dL/dV": do.T @ s,
        "dL/dU": delta.T @ xs,
        "dL/dW": delta.T @ before,
        "dL/dc": do.sum(axis=0),
        "dL/db": delta.sum(axis=0),
    }


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest number expected."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())
