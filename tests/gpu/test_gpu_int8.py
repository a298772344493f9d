"""Networks in int8 on a GPU: float32 products of the same whole numbers, so the same bits until a tanh."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.ragged_batches import make_network, make_sequences, run
from helpers.specs import make_spec
from seqloom_server.nn.forward.int8_linear import Int8Linear
from seqloom_server.nn.forward.network import Network


def test_products_have_the_bits_of_the_cpu():
    draw = torch.Generator().manual_seed(0)
    weight, states = torch.randn(40, 1100, generator=draw), torch.rand(20, 1100, generator=draw) * 2 - 1
    for inputs in ("states", "rows"):
        there, here = Int8Linear(weight.cuda(), None, inputs), Int8Linear(weight, None, inputs)
        assert torch.equal(there(states.cuda()).cpu(), here(states))


@pytest.mark.parametrize("shape", [{}, {"bidirectional": True}, {"conv_channels": 6, "conv_width": 3}])
@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
def test_networks_are_near_those_of_the_cpu(cell, shape):
    spec = make_spec(cell, layers=2, dtype="float32", sizes=(16, 33, 10), precision="int8", **shape)
    here, sequences = make_network(spec), make_sequences(spec, [9] * 7)
    there = Network(dataclasses.replace(spec), here.parameters(), "cuda")
    rows = torch.from_numpy(np.stack(sequences, 1).reshape(63, -1)).cuda()
    state = tuple(torch.zeros(layers, 7, width).cuda() for layers, width in spec.state_shapes().values())
    hidden, _ = there.advance(rows, torch.full((9,), 7), state)
    wanted = np.stack(run(here, sequences)[0], 1).reshape(63, -1)
    np.testing.assert_allclose(hidden.cpu().numpy(), wanted, rtol=0.02, atol=0.02)
