"""Every kind of output against plain numpy, in one chunk and in many, and the bound on the buffers."""

import numpy as np
import pytest
import torch
from helpers.largest_buffer import LargestBuffer
from helpers.ragged_batches import make_network
from helpers.specs import make_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.nn.forward import outputs
from seqloom_server.nn.reference import reference_forward

KINDS = ["logits", "probs", "log_probs", "labels", "hidden", "top_k"]


def expected_outputs(parameters, hidden, kind, top_k):
    logits = reference_forward.logits(parameters, hidden)
    if kind == "logits":
        return logits, None
    if kind == "hidden":
        return hidden, None
    if kind == "probs":
        return reference_forward.softmax(logits), None
    if kind == "log_probs":
        return reference_forward.log_softmax(logits), None
    if kind == "labels":
        return None, logits.argmax(1) if len(hidden) else np.empty(0)
    order = np.argsort(-logits, axis=1)[:, :top_k]
    return np.take_along_axis(reference_forward.log_softmax(logits), order, 1), order


@pytest.fixture
def small_chunks(monkeypatch):
    """Three rows of 7 float64 classes to a buffer."""
    monkeypatch.setattr(outputs, "MAX_BUFFER_BYTES", 3 * 7 * 8)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 9, 20])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("small_chunks")
def test_every_kind_in_chunks(kind, rows):
    check(kind, rows, top_k=4)


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(KINDS), rows=st.integers(1, 40), top_k=st.integers(1, 7), scale=st.sampled_from([1, 300]))
def test_every_kind_in_one_chunk(kind, rows, top_k, scale):
    check(kind, rows, top_k, scale)


def check(kind, rows, top_k, scale=1):
    network = make_network(make_spec("elman"))
    parameters = {name: tensor.numpy() for name, tensor in network.parameters().items()}
    hidden = scale * np.random.default_rng(rows).standard_normal((rows, 5))
    values, labels = network.outputs(torch.tensor(hidden), kind, top_k)
    wanted_values, wanted_labels = expected_outputs(parameters, hidden, kind, top_k)
    assert (values is None) == (wanted_values is None)
    assert (labels is None) == (wanted_labels is None)
    if values is not None:
        np.testing.assert_allclose(values.numpy(), wanted_values, rtol=1e-10, atol=1e-10)
    if labels is not None:
        assert labels.dtype == torch.int32
        np.testing.assert_array_equal(labels.numpy(), wanted_labels)


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_give_empty_outputs(kind):
    values, labels = make_network(make_spec("elman")).outputs(torch.empty(0, 5, dtype=torch.float64), kind, 2)
    widths = {"hidden": 5, "top_k": 2}
    if kind != "labels":
        assert values.shape == (0, widths.get(kind, 7))
    if kind in ("labels", "top_k"):
        assert labels.shape == ((0,) if kind == "labels" else (0, 2))


@pytest.mark.parametrize("kind", ["probs", "log_probs", "labels", "top_k"])
def test_no_buffer_beside_the_result_is_larger_than_its_bound(kind, monkeypatch):
    monkeypatch.setattr(outputs, "MAX_BUFFER_BYTES", 10 * 500 * 8)
    network = make_network(make_spec("elman", sizes=(3, 5, 500)))
    hidden = torch.ones(1000, 5, dtype=torch.float64)
    weights = {tensor.untyped_storage().data_ptr() for tensor in (hidden, *network.parameters().values())}
    with LargestBuffer() as seen:
        results = network.outputs(hidden, kind, 2)
    own = {result.untyped_storage().data_ptr() for result in results if result is not None}
    buffers = {pointer: size for pointer, size in seen.sizes.items() if pointer not in own | weights}
    assert max(buffers.values()) == 10 * 500 * 8
    assert outputs.chunk_rows(500, 8) == 10


@pytest.mark.parametrize("top_k", [0, -1, 8])
def test_a_top_k_that_the_network_has_not_is_refused(top_k):
    with pytest.raises(ValueError, match="expected 1 to 7"):
        make_network(make_spec("elman")).outputs(torch.zeros(2, 5, dtype=torch.float64), "top_k", top_k)


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="'logit'"):
        make_network(make_spec("elman")).outputs(torch.zeros(2, 5, dtype=torch.float64), "logit")
