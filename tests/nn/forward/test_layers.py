"""Weights and products in bfloat16: near float32, in company, in chunks, and over long sequences."""

import dataclasses
import gc
import weakref

import numpy as np
import pytest
import torch
from helpers.ragged_batches import make_network, make_sequences, make_state
from helpers.specs import CELLS, make_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.nn.forward import product_choice
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.spec import InvalidSpec
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence


@pytest.fixture(autouse=True, params=[1, product_choice._WORTH], ids=["packed", "as they are"])
def _worth(request, monkeypatch):
    monkeypatch.setattr(product_choice, "_WORTH", request.param)
    monkeypatch.setattr(product_choice.choices, "_measure", lambda weight: 0.5)
    monkeypatch.setattr(product_choice.choices, "_shares", {})


STEP = 2.0**-8  # between numbers of bfloat16 that are a little above 1
SHAPES = {
    "plain": {},
    "both directions": {"bidirectional": True},
    "a convolution": {"conv_channels": 16, "conv_width": 3},
}


def pair(cell, activation, *, layers=1, sizes=(16, 32, 10), **more):
    """A network in full, and the same weights in bfloat16."""
    full = make_network(
        make_spec(cell, activation, layers=layers, dtype="float32", sizes=sizes, precision="full", **more)
    )
    spec = dataclasses.replace(full.spec, precision="bf16")
    return full, Network(spec, full.parameters(), "cpu")


def run(network, sequences, state):
    """Returns ([T_i, width] float32 each, final state parts), as ragged.run does."""
    packed = pack_sequence([torch.tensor(sequence) for sequence in sequences], enforce_sorted=False)
    ordered = tuple(torch.tensor(part).index_select(1, packed.sorted_indices) for part in state)
    hidden, after = network.advance(packed.data, packed.batch_sizes, ordered)
    padded, lengths = pad_packed_sequence(packed._replace(data=hidden.float()), batch_first=True)
    outputs = [padded[i, :length].numpy() for i, length in enumerate(lengths)]
    return outputs, tuple(part.index_select(1, packed.unsorted_indices).numpy() for part in after)


def assert_near(got, wanted, steps):
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == np.float32
        assert np.abs(one - other).max(initial=0) <= steps * STEP * max(1.0, np.abs(other).max(initial=0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(0, 99))
def test_it_is_float32_to_two_digits(cell, activation, layers, shape, lengths, seed):
    full, halved = pair(cell, activation, layers=layers, **SHAPES[shape])
    sequences, state = make_sequences(full.spec, lengths, seed), make_state(full.spec, len(lengths), seed)
    hidden, after = run(full, sequences, state)
    near, near_after = run(halved, sequences, state)
    assert_near(near, hidden, 6)
    assert_near(near_after, after, 6)


@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_products_are_of_bfloat16(cell, activation):
    """Or the test above would hold for one that computes in full."""
    full, halved = pair(cell, activation)
    sequences, state = make_sequences(full.spec, [20]), make_state(full.spec, 1)
    (hidden,), _ = run(full, sequences, state)
    (near,), _ = run(halved, sequences, state)
    assert np.abs(near - hidden).max() > 0.05 * STEP


@pytest.mark.parametrize(("cell", "activation"), CELLS)
@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 25), min_size=2, max_size=6), st.data())
def test_alone_or_in_company_in_one_or_in_chunks(cell, activation, lengths, data):
    _, halved = pair(cell, activation)
    sequences, state = make_sequences(halved.spec, lengths), make_state(halved.spec, len(lengths))
    hidden, after = run(halved, sequences, state)
    one = data.draw(st.integers(0, len(lengths) - 1))
    cut = data.draw(st.integers(0, lengths[one]))
    own = tuple(part[:, one : one + 1] for part in state)
    pieces = []
    for rows in (sequences[one][:cut], sequences[one][cut:]):
        if len(rows):
            (piece,), own = run(halved, [rows], own)
            pieces.append(piece)
    assert_near([np.concatenate(pieces)], [hidden[one]], 2)
    assert_near(own, [part[:, one : one + 1] for part in after], 2)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_small_additions_to_a_state_are_not_lost(cell):
    """A state that gains a thousandth a step: in bfloat16 it would stand still as soon as it is above 0.25 or so."""
    spec = make_spec(cell, dtype="float32", sizes=(1, 1, 1), precision="bf16")
    parameters = {name: torch.zeros(shape) for name, shape in spec.parameter_shapes().items()}
    bias = parameters["rnn.bias_ih_l0"]
    # gru: z = sigmoid(7), n = tanh(8); lstm: i = sigmoid(-7), f = sigmoid(20), g = tanh(8), o = sigmoid(20)
    bias.copy_(torch.tensor([0.0, 7.0, 8.0]) if cell == "gru" else torch.tensor([-7.0, 20.0, 8.0, 20.0]))
    steps = 1000
    _, after = run(Network(spec, parameters, "cpu"), [np.zeros((steps, 1), "f4")], make_state(spec, 1))
    start = make_state(spec, 1)[-1][0, 0, 0]
    share = 1 / (1 + np.exp(7.0))
    wanted = 1 - (1 - start) * (1 - share) ** steps if cell == "gru" else start + steps * share
    assert after[-1][0, 0, 0] == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("kind", ["logits", "probs", "log_probs", "labels", "hidden", "top_k"])
def test_outputs_are_float32_and_near(kind):
    full, halved = pair("elman", "tanh")
    hidden = torch.rand(40, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    values, labels = full.outputs(hidden, kind, 3)
    near, near_labels = halved.outputs(hidden.bfloat16(), kind, 3)
    if values is not None:
        assert_near([near.numpy()], [values.numpy()], 4)
    if labels is not None:
        logits = full.outputs(hidden, "logits")[0]
        chosen, best = near_labels.reshape(len(hidden), -1)[:, :1].long(), logits.max(1, keepdim=True).values
        assert near_labels.dtype == torch.int32
        assert (best - logits.gather(1, chosen)).max() <= 4 * STEP


def test_the_weights_stay_in_full_and_the_copies_are_counted():
    full, halved = pair("lstm", "tanh")
    sequences, state = make_sequences(full.spec, [3]), make_state(full.spec, 1)
    assert halved.nbytes == full.nbytes
    (hidden,), _ = run(halved, sequences, state)
    halved.outputs(torch.tensor(hidden).bfloat16(), "labels")
    for name, tensor in halved.parameters().items():
        assert torch.equal(tensor, full.parameters()[name])
    assert halved.nbytes == pytest.approx(1.5 * full.nbytes, rel=0.02)


def test_float64_has_no_other_precision():
    with pytest.raises(InvalidSpec, match="precision: is 'bf16': float64 has only 'full'"):
        make_spec("gru", precision="bf16")


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
def test_weights_that_nobody_holds_are_gone_at_once(cell):
    """Also without the garbage collector, which a server tells to leave alone what is there when it starts."""
    network = make_network(make_spec(cell, dtype="float32", precision="bf16"))
    run(network, make_sequences(network.spec, [3, 2]), make_state(network.spec, 2))
    held = weakref.ref(network._layers)
    gc.disable()
    try:
        del network
        assert held() is None
    finally:
        gc.enable()
