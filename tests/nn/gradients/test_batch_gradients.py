"""Gradients of shared batches against float64 autograd of plain torch.nn, one sequence at a time."""

import dataclasses

import numpy as np
import pytest
from helpers.autograd_twin import (
    EVERYTHING,
    LOSSES,
    assert_equal,
    differentiate,
    make_example,
    make_network,
    multiplied,
    named,
    run,
)
from helpers.specs import CELLS, make_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.nn.losses.training_example import GradientRequest

TOLERANCES = {"float64": 1e-8, "float32": 1e-3}
SHAPES = [
    ((0, 0), False),
    ((0, 0), True),
    ((4, 3), False),
    ((4, 3), True),
    ((3, 1), False),
]  # convolution, bidirectional


def make_calls(spec, loss, lengths, draw, wants=EVERYTHING):
    """A call for each list of lengths; every second one with states of its own and a divisor."""
    calls = []
    for number, own in enumerate(lengths):
        odd = number % 2 == 1
        examples = [make_example(spec, n, loss, draw, states=odd, scale=1 / 3 if odd else 1.0) for n in own]
        calls.append((examples, wants))
    return calls


def check(network, calls, **options):
    """Every call's own gradients, and their sum, against the twin's."""
    spec = network.spec
    batch, _ = run(network, calls, total=True, **options)
    tolerance = TOLERANCES[spec.dtype]
    total = {name: np.zeros(shape) for name, shape in spec.parameter_shapes().items()}
    for call, (examples, _) in zip(batch.calls, calls, strict=True):
        assert call.overflow == ""
        expected = differentiate(network, examples)
        assert_equal(named(call, spec), expected, tolerance)
        for name, summed in total.items():
            summed += expected[name]
    assert_equal({name: tensor.numpy() for name, tensor in batch.total.items()}, total, tolerance)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_every_gradient_is_that_of_autograd(cell, activation, loss, layers):
    draw = np.random.default_rng(layers)
    for conv, bidirectional in SHAPES if layers == 2 else SHAPES[:3]:
        spec = make_spec(
            cell, activation, layers=layers, conv_channels=conv[0], conv_width=conv[1], bidirectional=bidirectional
        )
        check(make_network(spec), make_calls(spec, loss, [[4, 9, 1], [6, 2]], draw))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_float32_is_right_to_three_digits(cell, activation, loss):
    draw = np.random.default_rng(5)
    spec = make_spec(
        cell,
        activation,
        layers=2,
        conv_channels=6,
        conv_width=3,
        bidirectional=True,
        dtype="float32",
        sizes=(8, 16, 12),
    )
    check(make_network(spec), make_calls(spec, loss, [[30, 9], [17]], draw))


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=5),
    cell=st.sampled_from(CELLS),
    losses=st.lists(st.sampled_from(LOSSES), min_size=5, max_size=5),
    shape=st.sampled_from(SHAPES),
    piece_flops=st.sampled_from([1.0, 1e5, 1e9]),
    max_cells=st.sampled_from([1, 7, 10**6]),
    seed=st.integers(0, 100),
)
def test_any_calls_may_share_a_batch(lengths, cell, losses, shape, piece_flops, max_cells, seed):
    """Whatever their lengths, losses and states, wherever it is cut and grouped."""
    draw = np.random.default_rng(seed)
    spec = make_spec(*cell, conv_channels=shape[0][0], conv_width=shape[0][1], bidirectional=shape[1])
    calls = [
        make_calls(spec, loss, [own, own], draw)[seed % 2]
        for own, loss in zip(lengths, losses[: len(lengths)], strict=True)
    ]
    check(make_network(spec), calls, piece_flops=piece_flops, max_cells=max_cells)


@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_factors_and_norms_are_those_of_the_dense_gradients(cell, activation):
    spec = make_spec(cell, activation, layers=2, conv_channels=4, conv_width=3, bidirectional=True, sizes=(6, 24, 20))
    network, draw = make_network(spec), np.random.default_rng(0)
    (call,) = make_calls(spec, "cross_entropy", [[4, 9]], draw)
    found = {}
    for form in ("smallest", "dense", "norms"):
        batch, _ = run(network, [(call[0], GradientRequest(parameters=form))], max_cells=9)  # a group for each sequence
        found[form] = batch.calls[0]
    assert found["smallest"].dense is None
    assert_equal(multiplied(found["smallest"], spec), found["dense"].dense, 1e-12)
    norms = {name: np.linalg.norm(array) for name, array in found["dense"].dense.items()}
    assert found["norms"].norms == pytest.approx(norms, rel=1e-10)
    sent = sum(factor.size for factor in found["smallest"].factors)
    assert sent < spec.parameter_count
    names = [product.parameter for product in found["smallest"].products]
    assert names == list(spec.parameter_shapes())
    # a delta stands once, whoever uses it: for both biases, the inputs and the states
    lefts = {product.left for product in found["smallest"].products if product.parameter.endswith("_l1")}
    assert len(lefts) == (2 if cell == "gru" else 1)


@pytest.mark.parametrize("form", ["smallest", "norms"])
def test_many_steps_are_sent_as_the_products_themselves(form):
    spec = make_spec("elman")
    network, draw = make_network(spec), np.random.default_rng(0)
    (long,) = make_calls(spec, "mse", [[60]], draw, GradientRequest(parameters=form))
    batch, _ = run(network, [long, (long[0], GradientRequest(parameters="dense"))])
    own, dense = batch.calls
    assert own.factors is None
    if form == "smallest":
        assert_equal(own.dense, dense.dense, 1e-14)
    else:
        assert own.norms == pytest.approx({name: np.linalg.norm(array) for name, array in dense.dense.items()})


@pytest.mark.parametrize("total", [False, True])
@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(GradientRequest)])
def test_a_call_gets_what_it_wants_and_nothing_else(field, total):
    """Beside one that wants everything."""
    spec = make_spec("lstm", layers=2, conv_channels=4, conv_width=3)
    network, draw = make_network(spec), np.random.default_rng(0)
    everything, alone = make_calls(spec, "cross_entropy", [[3, 8], [5]], draw)
    wants = GradientRequest(**{field: "dense" if field == "parameters" else True})
    batch, _ = run(network, [(alone[0], wants), everything], total=total)
    alike, _ = run(network, [alone, everything], total=total)
    own = batch.calls[0]
    given_name = "dense" if field == "parameters" else field
    for name in ("final_state", "initial_state", "inputs", "outputs", "hidden", "dense", "factors", "norms"):
        assert (getattr(own, name) is not None) == (name == given_name), name
    found, expected = getattr(own, given_name), getattr(alike.calls[0], given_name)
    if field in ("final_state", "initial_state"):
        found, expected = dict(enumerate(found)), dict(enumerate(expected))
    elif field != "parameters":
        found, expected = {field: found}, {field: expected}
    assert_equal(found, expected, 1e-12)
    np.testing.assert_allclose(own.losses, alike.calls[0].losses, rtol=1e-12)


@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_the_gradient_by_the_hidden_states_holds_what_comes_from_later_steps(cell, activation):
    """It is what a change of one state changes: dL/ds_0 of what comes after the step is dL/ds_t less V' dL/do_t."""
    spec = make_spec(cell, activation)
    network, draw = make_network(spec), np.random.default_rng(1)
    example = make_example(spec, 6, "mse", draw, states=False)
    batch, _ = run(network, [([example], EVERYTHING)])
    whole = batch.calls[0]
    first = dataclasses.replace(example, xs=example.xs[:4], targets=example.targets[:4])
    middle, _ = run(network, [([first], GradientRequest(final_state=True))])
    rest = dataclasses.replace(
        example, xs=example.xs[4:], targets=example.targets[4:], initial_state=middle.calls[0].final_state
    )
    after, _ = run(network, [([rest], GradientRequest(initial_state=True))])
    by_outputs = whole.outputs[3] @ network.parameters()["output.weight"].numpy()
    np.testing.assert_allclose(whole.hidden[3], by_outputs + after.calls[0].initial_state[0][0, 0], atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_the_same_call_gives_the_same_bits_again(cell, activation, dtype):
    spec = make_spec(
        cell, activation, layers=2, conv_channels=6, conv_width=3, bidirectional=True, dtype=dtype, sizes=(8, 32, 40)
    )
    network, draw = make_network(spec), np.random.default_rng(3)
    calls = make_calls(spec, "cross_entropy", [[30, 11], [17]], draw)
    batches = [run(network, calls, total=True, piece_flops=1e6)[0] for _ in range(2)]
    for one, other in zip(batches[0].calls, batches[1].calls, strict=True):
        one, other = named(one, spec), named(other, spec)
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name], err_msg=name)
    for name, tensor in batches[0].total.items():
        np.testing.assert_array_equal(tensor, batches[1].total[name], err_msg=name)
