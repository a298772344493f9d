"""Gradients of shared batches on the GPU, and their sum, against float64 autograd of plain torch.nn on the CPU."""

import numpy as np
import pytest
from helpers.autograd_twin import (
    EVERYTHING,
    LOSSES,
    assert_equal,
    differentiate,
    make_example,
    make_network,
    named,
    run,
)
from helpers.specs import CELLS, make_spec
from seqloom_server.nn.forward.network import Network

DEVICE = "cuda"
TOLERANCES = {"float32": 1e-3, "float64": 1e-10}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_every_gradient_on_the_gpu_is_that_of_autograd(cell, activation, loss, dtype):
    draw = np.random.default_rng(0)
    spec = make_spec(cell, activation, layers=2, bidirectional=True, conv_channels=6, conv_width=3, dtype=dtype)
    exact = make_network(spec)
    network = Network(spec, exact.parameters(), DEVICE)
    calls = [
        ([make_example(spec, length, loss, draw) for length in lengths], EVERYTHING) for lengths in ([4, 9, 1], [6, 2])
    ]
    batch, _ = run(network, calls, total=True)
    total = {name: np.zeros(shape) for name, shape in spec.parameter_shapes().items()}
    for call, (examples, _) in zip(batch.calls, calls, strict=True):
        expected = differentiate(exact, examples)
        assert_equal(named(call, spec), expected, TOLERANCES[dtype])
        for name, summed in total.items():
            summed += expected[name]
    assert_equal({name: tensor.cpu().numpy() for name, tensor in batch.total.items()}, total, TOLERANCES[dtype])
