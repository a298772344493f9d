"""What overflows is named and left out; everybody else gets what they would have got."""

import dataclasses

import numpy as np
import pytest
from helpers.autograd_twin import EVERYTHING, make_example, make_network, named, run
from helpers.specs import make_spec
from seqloom_server.nn.losses.training_example import GradientRequest

SPEC = make_spec("elman", "relu", dtype="float32", layers=2)


def huge_inputs(example):
    return dataclasses.replace(example, xs=np.full_like(example.xs, 1e38))


def huge_targets(example):
    return dataclasses.replace(example, targets=np.full_like(example.targets, 1e30))


def huge_gradients(example):
    """Finite all, and so are the deltas: only their products with the states are not."""
    d_o = np.full((len(example.xs), SPEC.output_size), 1e30, "f4")
    return dataclasses.replace(example, xs=example.xs * 1e12, loss=None, targets=None, output_gradients=d_o)


CASES = [
    (huge_inputs, "the loss of sequence 1"),
    (huge_targets, "the loss of sequence 1"),
    (huge_gradients, "the gradient of rnn.weight_ih_l0"),
]


def make_calls(wants, breaks):
    draw = np.random.default_rng(0)
    calls = [([make_example(SPEC, n, "mse", draw) for n in lengths], wants) for lengths in ([4, 9], [6, 3, 5], [2])]
    examples = calls[1][0]
    examples[1] = breaks(examples[1])
    return calls


@pytest.mark.parametrize("form", ["none", "smallest", "dense", "norms"])
@pytest.mark.parametrize("total", [True, False])
@pytest.mark.parametrize(("breaks", "name"), CASES)
def test_the_call_is_named_and_the_others_are_as_they_are(breaks, name, total, form):
    network = make_network(SPEC)
    wants = dataclasses.replace(EVERYTHING, parameters=form)
    calls = make_calls(wants, breaks)
    batch, _ = run(network, calls, total=total)
    unspoilt, _ = run(network, make_calls(wants, lambda example: example), total=total)
    if form == "none" and not total and "loss" not in name:
        assert batch.calls[1].overflow in ("", name)  # nobody asked for what overflows
    else:
        assert batch.calls[1].overflow == name
    for number in (0, 2):
        own, expected = batch.calls[number], unspoilt.calls[number]
        assert own.overflow == ""
        assert own.norms == expected.norms
        for field in ("losses", "inputs", "outputs", "hidden"):
            np.testing.assert_allclose(getattr(own, field), getattr(expected, field), rtol=1e-6, atol=1e-7)
        if form == "dense":
            found, wanted = named(own, SPEC), named(expected, SPEC)
            for key, array in wanted.items():
                np.testing.assert_allclose(found[key], array, rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize(("breaks", "name"), CASES)
def test_the_sum_is_to_the_bit_that_of_the_others(breaks, name):
    network = make_network(SPEC)
    calls = make_calls(GradientRequest(), breaks)
    batch, _ = run(network, calls, total=True)
    assert [call.overflow for call in batch.calls] == ["", name, ""]
    others, _ = run(network, [calls[0], calls[2]], total=True)
    for key, tensor in others.total.items():
        np.testing.assert_array_equal(batch.total[key], tensor, err_msg=key)


def test_there_is_no_sum_where_every_call_overflows():
    network = make_network(SPEC)
    calls = make_calls(GradientRequest(), huge_inputs)[1:2]
    batch, _ = run(network, calls, total=True)
    assert batch.calls[0].overflow == "the loss of sequence 1"
    assert batch.total is None


def test_finite_gradients_whose_sum_is_not_are_told():
    """Each call alone would be fine."""
    network = make_network(SPEC)
    draw = np.random.default_rng(0)
    example = make_example(SPEC, 1, None, draw, states=False)
    example = dataclasses.replace(example, output_gradients=np.full((1, SPEC.output_size), 2e38, "f4"))
    call = ([example], GradientRequest())
    alone, _ = run(network, [call], total=True)
    assert alone.calls[0].overflow == ""
    both, _ = run(network, [call, call], total=True)
    assert [each.overflow for each in both.calls] == ["the sum of all callers' gradients"] * 2
    assert both.total is None


def test_large_numbers_that_fit_are_no_overflow():
    """Squares and norms of them would not fit."""
    network = make_network(SPEC)
    draw = np.random.default_rng(0)
    example = make_example(SPEC, 3, None, draw)
    example = dataclasses.replace(example, output_gradients=example.output_gradients * np.float32(1e30))
    for form in ("smallest", "dense"):
        batch, _ = run(network, [([example], GradientRequest(parameters=form))], total=True)
        assert batch.calls[0].overflow == ""
        assert batch.total is not None
