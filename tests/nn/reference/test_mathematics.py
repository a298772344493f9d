"""docs/mathematics.md: every function that it names exists, no formula is left out, its backward pass is right."""

import importlib
import inspect

import numpy as np
import pytest
import torch
from helpers.pages import names, text
from helpers.ragged_batches import make_network, make_sequences, make_state
from helpers.specs import make_spec
from seqloom_server.nn.reference import reference_forward

PAGE = text("docs/mathematics.md")
NAMES = names("docs/mathematics.md")


def resolve(name):
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_function_that_is_named_exists(name):
    found = resolve(name)
    assert callable(found) or isinstance(found, property)


def test_every_formula_of_the_plain_twin_is_on_the_page():
    public = {
        f"{reference_forward.__name__}.{name}"
        for name, member in inspect.getmembers(reference_forward, inspect.isfunction)
        if member.__module__ == reference_forward.__name__ and not name.startswith("_")
    }
    assert public <= set(NAMES)
    assert len(public) >= 8


def test_the_parameter_counts_that_are_told_are_right():
    spec = make_spec("elman", sizes=(160, 1000, 6000))
    assert f"{spec.parameter_count:,}" in PAGE
    assert f"{100 * spec.parameter_count:,}" in PAGE


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_backward_formulas_are_the_gradients(activation):
    spec = make_spec("elman", activation)
    network = make_network(spec)
    weights = {name: tensor.numpy() for name, tensor in network.parameters().items()}
    u, w, v = (weights[name] for name in ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "output.weight"))
    (xs,), (s0,) = make_sequences(spec, [12]), make_state(spec, 1)
    targets = np.random.default_rng(2).integers(0, spec.output_size, len(xs))

    # as the page has it
    hidden, _ = reference_forward.forward(spec, weights, xs, (s0,))
    before = np.concatenate([s0[0], hidden[:-1]])
    d_o = reference_forward.softmax(reference_forward.logits(weights, hidden)) - np.eye(spec.output_size)[targets]
    slope = 1 - hidden * hidden if activation == "tanh" else (hidden > 0).astype("f8")
    delta = np.zeros((len(xs) + 1, spec.hidden_size))
    for t in reversed(range(len(xs))):
        delta[t] = (v.T @ d_o[t] + w.T @ delta[t + 1]) * slope[t]
    by_hand = {
        "rnn.weight_ih_l0": sum(np.outer(d, x) for d, x in zip(delta[:-1], xs, strict=True)),
        "rnn.weight_hh_l0": sum(np.outer(d, s) for d, s in zip(delta[:-1], before, strict=True)),
        "rnn.bias_ih_l0": delta.sum(0),
        "rnn.bias_hh_l0": delta.sum(0),
        "output.weight": sum(np.outer(d, s) for d, s in zip(d_o, hidden, strict=True)),
        "output.bias": d_o.sum(0),
        "xs": delta[:-1] @ u,
        "s0": (w.T @ delta[0])[None, None],
    }

    # by automatic differentiation
    rnn = torch.nn.RNN(spec.input_size, spec.hidden_size, nonlinearity=activation).double()
    output = torch.nn.Linear(spec.hidden_size, spec.output_size).double()
    module = torch.nn.ModuleDict({"rnn": rnn, "output": output})
    module.load_state_dict(network.parameters())
    x, s = torch.tensor(xs, requires_grad=True), torch.tensor(s0, requires_grad=True)
    logits = output(rnn(x[:, None], s)[0][:, 0])
    torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="sum").backward()
    automatic = {name: parameter.grad for name, parameter in module.named_parameters()} | {"xs": x.grad, "s0": s.grad}
    for name, gradient in automatic.items():
        np.testing.assert_allclose(by_hand[name], gradient.numpy(), rtol=1e-10, atol=1e-12, err_msg=name)
