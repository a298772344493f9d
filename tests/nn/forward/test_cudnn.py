"""The calls that a GPU's layers are made of, on the CPU: of equal lengths, of unequal ones, and in bfloat16."""

import numpy as np
import pytest
import torch
from helpers.ragged_batches import make_network, make_sequences, make_state, run
from helpers.specs import CELLS, make_spec
from seqloom_server.nn.forward import precision
from seqloom_server.nn.forward.cudnn_layers import CudnnLayers
from seqloom_server.nn.forward.network import Network


def as_on_a_gpu(network):
    """The network with the layers that it would have on a GPU."""
    twin = Network(network.spec, network.parameters(), "cpu")
    twin._layers = CudnnLayers(twin.spec, twin._rnn, twin._forward)
    return twin


@pytest.mark.parametrize("lengths", [[6, 6, 6], [7, 1, 30, 2], [5]])
@pytest.mark.parametrize("more", [{"layers": 2}, {"bidirectional": True}, {"conv_channels": 2, "conv_width": 3}])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_one_call_gives_what_the_cpus_gives(cell, activation, more, lengths):
    network = make_network(make_spec(cell, activation, **more))
    sequences, state = make_sequences(network.spec, lengths), make_state(network.spec, len(lengths))
    expected, after_expected = run(network, sequences, state)
    hidden, after = run(as_on_a_gpu(network), sequences, state)
    for got, wanted in [*zip(hidden, expected, strict=True), *zip(after, after_expected, strict=True)]:
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lengths", [[20, 20, 20], [20, 9, 3]])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_in_bfloat16_it_is_near_the_full_precision_and_states_are_float32(cell, activation, lengths):
    full = make_network(make_spec(cell, activation, dtype="float32", sizes=(16, 32, 5), precision="full"))
    half = Network(
        make_spec(cell, activation, dtype="float32", sizes=(16, 32, 5), precision="bf16"), full.parameters(), "cpu"
    )
    rows, sizes = torch.randn(sum(lengths), 16), torch.tensor([sum(n > t for n in lengths) for t in range(20)])
    state = tuple(map(torch.from_numpy, make_state(full.spec, 3)))
    exact, after_exact = full.advance(rows, sizes, state)
    layers = as_on_a_gpu(half)
    hidden, after = layers.advance(rows, sizes, state)
    assert hidden.dtype is torch.bfloat16
    for got, wanted in [(hidden.float(), exact), *zip(after, after_exact, strict=True)]:
        assert got.dtype is torch.float32
        assert 0 < (got - wanted).abs().max() < 0.03 * wanted.abs().max()
    assert layers.nbytes > full.nbytes


def test_the_cpu_has_no_switch_and_a_gpus_goes_back():
    device = torch.device("cpu")
    assert precision.products("tf32", device) is precision.products("full", device)
    switch = precision.products("tf32", torch.device("cuda"))  # which asks nothing of the device
    precision.allow_tf32(False)
    for _ in range(2):
        with switch:
            assert torch.backends.cudnn.rnn.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.backends.cudnn.rnn.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "ieee"
    with precision.products("full", torch.device("cuda")):
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
