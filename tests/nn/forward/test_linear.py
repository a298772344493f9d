"""Products with weights that are laid out once: what torch.addmm gives, for any rows; large networks through them."""

import numpy as np
import pytest
import torch
from helpers.ragged_batches import logits_of, make_network, make_sequences, make_state, run, run_twin, torch_twin
from helpers.specs import CELLS, make_spec
from helpers.tolerances import alike, near
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.nn.forward import product_choice
from seqloom_server.nn.forward.packed_linear import PackedLinear
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.fixture(autouse=True)
def _small_ones_are_worth_it(monkeypatch):
    monkeypatch.setattr(product_choice, "_WORTH", 1)
    monkeypatch.setattr(product_choice.choices, "_measure", lambda weight: 0.5)
    monkeypatch.setattr(product_choice.choices, "_shares", {})


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("bias", [True, False])
@settings(max_examples=50, deadline=None)
@given(st.integers(0, 70), st.integers(1, 40), st.integers(1, 40))
def test_it_is_the_product_in_float64_and_packed_where_onednn_is(bias, rows, inputs, classes):
    weight, b, x = draw(classes, inputs), draw(classes) if bias else None, draw(rows, inputs, seed=1)
    own = PackedLinear(weight, b)
    assert own.packed == torch.backends.mkldnn.is_available()
    wanted = x.double() @ weight.double().t()
    with torch.inference_mode():
        got, more = own(x), own.plus(x, torch.ones(rows, classes))
    np.testing.assert_allclose(more.numpy(), wanted.numpy() + 1, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.numpy(), (wanted if b is None else wanted + b).numpy(), rtol=1e-5, atol=1e-5)


def test_float64_and_small_ones_are_not_packed(monkeypatch):
    assert not PackedLinear(draw(3, 4, dtype=torch.float64), None).packed
    monkeypatch.setattr(product_choice, "_WORTH", 13)
    small = PackedLinear(draw(3, 4), draw(3))
    assert not small.packed
    assert small.packed_bytes == 0
    out = torch.empty(2, 3)
    assert small(draw(2, 4), out) is out


class RowsOfProducts(TorchDispatchMode):
    """Records how many rows the products have that are run."""

    def __init__(self):
        super().__init__()
        self.counts = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        rows = {"mm": 0, "addmm": 1, "addmm_": 1, "_linear_pointwise": 0}.get(func.overloadpacket.__name__)
        if rows is not None:
            self.counts.add(len(args[rows]))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="nothing is packed without oneDNN")
def test_packed_products_of_many_rows_come_in_few_sizes():
    own, x = PackedLinear(draw(20, 30), None), draw(600, 30, seed=1)
    with torch.inference_mode(), RowsOfProducts() as seen:
        for count in range(1, 600):
            own.plus(x[:count], torch.ones(count, 20))
        assert seen.counts == {*range(1, 257), *range(288, 609, 32)}
        seen.counts.clear()
        for count in range(1, 600):
            got, more = own(x[:count]), own.plus(x[:count], torch.ones(count, 20))
            torch.testing.assert_close(more, got + 1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_products_of_bfloat16_come_in_few_sizes_where_they_are_not_packed_either(bias, monkeypatch):
    monkeypatch.setattr(product_choice, "_WORTH", 1000)
    weight, b = draw(20, 30).bfloat16(), draw(20).bfloat16() if bias else None
    own, x = PackedLinear(weight, b), draw(600, 30, seed=1).bfloat16()
    wanted = x.double() @ weight.double().t()
    assert not own.packed
    with torch.inference_mode(), RowsOfProducts() as seen:
        for count in range(600):
            got, more = own(x[:count]), own.plus(x[:count], torch.ones(count, 20).bfloat16())
            for product, added in ((got, 0 if b is None else b.double()), (more, 1)):
                torch.testing.assert_close(product.double(), wanted[:count] + added, rtol=2**-7, atol=2**-7)
    assert seen.counts - {0, 1} == {*range(8, 129, 8), *range(144, 257, 16), *range(288, 513, 32), 576, 640}


@pytest.mark.parametrize("more", [{}, {"bidirectional": True}, {"conv_channels": 4, "conv_width": 3}])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_a_network_of_packed_weights_is_torch_nn_in_float64(cell, activation, layers, more):
    network = make_network(make_spec(cell, activation, layers=layers, dtype="float32", sizes=(16, 32, 10), **more))
    weights = sum(tensor.nbytes for tensor in network.parameters().values())
    assert network.nbytes == weights  # nothing is laid out before it is used
    module, lengths = torch_twin(network).double(), [7, 1, 60, 13, 13, 2]
    sequences, state = make_sequences(network.spec, lengths), make_state(network.spec, len(lengths))
    hidden, after = run(network, sequences, state)
    for i, sequence in enumerate(sequences):
        before = [part[:, i : i + 1].astype("f8") for part in state]
        expected, logits, final = run_twin(module, sequence.astype("f8"), before)
        values = logits_of(network, hidden[i])
        own = [part[:, i : i + 1] for part in after]
        for got, wanted in zip([hidden[i], values.numpy(), *own], [expected, logits, *final], strict=True):
            assert np.abs(got - wanted).max() <= near(rtol=1e-5)["rtol"] * max(1, np.abs(wanted).max())
    if network.spec.precision == "bf16":
        assert 1.4 * weights < network.nbytes < 1.5 * weights  # every matrix once more, in half the bytes
    elif network.spec.precision == "int8":
        assert 1.25 * weights < network.nbytes < 1.5 * weights  # in a quarter, and scales for each row
    else:
        assert cell == "lstm" or network.nbytes > 1.5 * weights


@pytest.mark.parametrize(("cell", "activation"), CELLS)
@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=9), st.data())
def test_alone_or_in_company_in_one_or_in_chunks_it_is_the_same(cell, activation, lengths, data):
    network = make_network(make_spec(cell, activation, layers=2, dtype="float32", sizes=(16, 32, 10)))
    sequences, state = make_sequences(network.spec, lengths), make_state(network.spec, len(lengths))
    hidden, after = run(network, sequences, state)
    one = data.draw(st.integers(0, len(lengths) - 1))
    cut = data.draw(st.integers(0, lengths[one]))
    own, pieces = tuple(part[:, one : one + 1] for part in state), []
    for rows in (sequences[one][:cut], sequences[one][cut:]):
        if len(rows):
            (piece,), own = run(network, [rows], own)
            pieces.append(piece)
    np.testing.assert_allclose(np.concatenate(pieces), hidden[one], **alike(rtol=1e-5, atol=1e-5))
    for got, wanted in zip(own, after, strict=True):
        np.testing.assert_allclose(got, wanted[:, one : one + 1], **alike(rtol=1e-5, atol=1e-5))


@pytest.mark.parametrize("precision", ["full", "bf16"])
def test_labels_are_the_first_of_the_largest(precision):
    network = make_network(make_spec("elman", dtype="float32", sizes=(3, 4, 6), precision=precision))
    network.parameters()["output.weight"].zero_()
    network.parameters()["output.bias"].copy_(torch.tensor([0.0, 2.0, 1.0, 2.0, 2.0, -1.0]))
    network = type(network)(network.spec, network.parameters(), "cpu")
    hidden = torch.ones(5, 4, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    assert network.outputs(hidden, "labels")[1].tolist() == [1] * 5
