"""The plain twin of the way back against the fast path, in float64; and both are on the page."""

import inspect

import numpy as np
import pytest
from helpers.autograd_twin import EVERYTHING, assert_equal, make_example, make_network, run
from helpers.pages import names
from helpers.specs import CELLS, make_spec
from seqloom_server.nn.reference import reference_backward, reference_forward


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", None])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_the_formulas_give_what_callers_get(cell, activation, loss):
    spec = make_spec(cell, activation)
    network, draw = make_network(spec), np.random.default_rng(0)
    weights = {name: tensor.numpy() for name, tensor in network.parameters().items()}
    examples = [make_example(spec, length, loss, draw, states=False) for length in (9, 4, 11)]
    batch, _ = run(network, [([example], EVERYTHING) for example in examples])
    for call, example in zip(batch.calls, examples, strict=True):
        hidden, _ = reference_forward.forward(spec, weights, example.xs)
        o = reference_forward.logits(weights, hidden)
        d_o = example.output_gradients if loss is None else getattr(reference_backward, loss)(o, example.targets)
        by_hand = reference_backward.backward(spec, weights, example.xs, d_o)
        found = call.dense | {"inputs": call.inputs, "initial_state": call.initial_state[0][0, 0]}
        assert_equal(found, by_hand, 1e-10)
        np.testing.assert_allclose(call.outputs, d_o, atol=1e-12)


def test_every_formula_of_it_is_on_the_page():
    public = {
        f"{reference_backward.__name__}.{name}"
        for name, member in inspect.getmembers(reference_backward, inspect.isfunction)
        if member.__module__ == reference_backward.__name__ and not name.startswith("_")
    }
    assert public <= set(names("docs/mathematics.md"))
    assert len(public) == 7
