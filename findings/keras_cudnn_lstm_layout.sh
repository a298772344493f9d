#!/usr/bin/env bash
# A Keras weight file of an LSTM may hold other numbers in arrays of the same shapes.
#
# Keras 2's CuDNNLSTM and LSTM both save "kernel" [inputs, 4 units] and "recurrent_kernel" [units, 4 units]. LSTM's are
# to be multiplied from the right, CuDNNLSTM's are cuDNN's own: each gate's block of the kernel is [units, inputs] row
# by row in an array of shape [inputs, units], and each square recurrent block is transposed. Nothing in the file says
# which it is: no class name, no attribute; only that "bias" has 8 units and not 4. Who adds the bias's two halves and
# reads the rest as LSTM's gets a network that runs, of the right shapes, and says nonsense.
#
# Seen with the weights that textgenrnn 2.0.0 ships on the Python package index (saved by Keras 2.1.5), in plain numpy,
# on English text: the next character is right in half of the cases read as cuDNN's, and in hardly any as LSTM's.
# Keras' own conversion is _convert_rnn_weights in keras/engine/saving.py (2.2.4).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check h5py==3.16.0 numpy==2.4.6
"$work/venv/bin/pip" install -q --disable-pip-version-check --no-deps --target "$work/packages" textgenrnn==2.0.0

"$work/venv/bin/python" - "$work/packages/textgenrnn" <<'PYTHON'
import json
import pathlib
import sys

import h5py
import numpy as np

folder = pathlib.Path(sys.argv[1])
file = h5py.File(folder / "textgenrnn_weights.hdf5")
numbers = json.loads((folder / "textgenrnn_vocab.json").read_text())
read = {layer: {name: file[f"{layer}/{layer}/{name}:0"][()] for name in ("kernel", "recurrent_kernel", "bias")}
        for layer in ("rnn_1", "rnn_2")}
print("textgenrnn 2.0.0, saved by Keras", file.attrs["keras_version"])
for layer, arrays in read.items():
    print(layer, {name: array.shape for name, array in arrays.items()}, "attributes:", list(file[layer].attrs))

TEXT = """It was the first time that he had seen the house where his mother was born, and he did not know what to say. There
is no reason why the people of this country should have to wait for another year. What is the best way to learn how to
play the guitar when you do not have a lot of time? The people who live in the city have been told to stay at home."""
index = np.array([numbers[character] for character in TEXT.replace("\n", " ")])
windows = np.stack([index[start : start + 40] for start in range(len(index) - 40)])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def matrices(arrays, as_cudnn):
    """U [inputs, 4 units] and W [units, 4 units], to be multiplied from the right."""
    u, w = np.split(arrays["kernel"], 4, 1), np.split(arrays["recurrent_kernel"], 4, 1)
    if as_cudnn:
        u, w = [gate.reshape(gate.shape[::-1]).T for gate in u], [gate.T for gate in w]
    return np.hstack(u), np.hstack(w)


def lstm(x, arrays, as_cudnn):
    (u, w), bias = matrices(arrays, as_cudnn), arrays["bias"].reshape(2, -1).sum(0)
    h = c = np.zeros((len(x), len(w)))
    states = []
    for step in range(x.shape[1]):
        i, f, g, o = np.split(x[:, step] @ u + h @ w + bias, 4, 1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.stack(states, 1)


def right(as_cudnn):
    x = file["embedding/embedding/embeddings:0"][()][windows]
    first = lstm(x, read["rnn_1"], as_cudnn)
    seen = np.concatenate([x, first, lstm(first, read["rnn_2"], as_cudnn)], 2)
    attention = np.exp(seen @ file["attention/attention/attention_W:0"][()])
    logits = (attention / attention.sum(1, keepdims=True) * seen).sum(1) @ file["output/output/kernel:0"][()]
    return float(((logits + file["output/output/bias:0"][()]).argmax(1) == index[40:]).mean())


shares = {name: right(name == "cuDNN") for name in ("LSTM", "cuDNN")}
for name, share in shares.items():
    print(f"read in {name}'s layout: {share:.1%} of {len(windows)} next characters right")
units = len(read["rnn_1"]["recurrent_kernel"])
assert read["rnn_1"]["kernel"].shape[1] == read["rnn_1"]["recurrent_kernel"].shape[1] == 4 * units
assert read["rnn_1"]["bias"].shape == (8 * units,)
assert shares["LSTM"] < 0.1 and shares["cuDNN"] > 0.4, "the behaviour has changed"
PYTHON
