"""Recorded graphs against the CPU: every cell, precision and way of ending; what cannot be recorded is cuDNN's."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.masked_rectangles import run_masked
from helpers.ragged_batches import make_network, make_sequences, make_state, run
from helpers.recorded_graphs import always
from helpers.specs import CELLS, make_spec
from seqloom_server.nn.cuda_graphs import graph_layers as module
from seqloom_server.nn.cuda_graphs.buckets import Grid
from seqloom_server.nn.cuda_graphs.graph_layers import GraphLayers
from seqloom_server.nn.forward.network import Network

GRID = Grid((1, 2, 4, 8, 16, 32), (1, 2, 4, 6, 8))


class OnGpu:
    """Graphs that take tensors of the CPU, as run_masked has them, and give such."""

    def __init__(self, network):
        self._graphs = always(GraphLayers(network, grid=GRID, max_padding=1.0))
        self.rectangle = self._graphs.rectangle

    def advance(self, rows, shape, lengths, state):
        hidden, after = self._graphs.advance(rows.cuda(), shape, lengths.cuda(), tuple(part.cuda() for part in state))
        return hidden.cpu(), tuple(part.cpu() for part in after)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_what_was_recorded_gives_what_the_cpu_gives(cell, activation, layers):
    here = make_network(make_spec(cell, activation, layers=layers, dtype="float32", sizes=(16, 64, 10)))
    there = OnGpu(Network(here.spec, here.parameters(), "cuda"))
    for lengths in ([100, 97, 40, 7, 1, 100], [8] * 6, [1], [33, 33], [3, 3, 3, 2, 2, 1, 1, 1]):
        sequences, state = make_sequences(here.spec, lengths), make_state(here.spec, len(lengths))
        expected, after_expected = run(here, sequences, state)
        hidden, after = run_masked(there, sequences, state, padding=1e3)
        for got, wanted in [*zip(hidden, expected, strict=True), *zip(after, after_expected, strict=True)]:
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_graph_keeps_the_precision_in_which_it_was_recorded(precision):
    here = make_network(make_spec("gru", dtype="float32", sizes=(64, 256, 10)))
    spec = dataclasses.replace(here.spec, precision=precision)
    there = OnGpu(Network(spec, here.parameters(), "cuda"))
    sequences, state = make_sequences(here.spec, [20] * 6), make_state(here.spec, 6)
    expected, _ = run(here, sequences, state)
    hidden, _ = run_masked(there, sequences, state)
    worst = max(np.abs(got - wanted).max() for got, wanted in zip(hidden, expected, strict=True))
    assert 1e-5 < worst < 0.03


def test_what_synchronises_cannot_be_recorded_and_leaves_the_device_usable(caplog):
    network = Network.create(make_spec("elman", dtype="float32"), 0, "cuda")

    class Synchronising(GraphLayers):
        def _run(self, steps, rows):
            self._left.sum().item()

    graphs = Synchronising(network, grid=GRID)
    graphs.prepare()
    assert "cuDNN" in caplog.text
    assert graphs.rectangle(np.array([2, 2])) is None
    assert torch.ones(3, device="cuda").sum().item() == 3
    another = GraphLayers(network, grid=Grid((1, 2), (1, 2)))
    another.prepare()
    assert len(another._graphs) == 4


def test_all_buckets_of_a_large_network_are_recorded_within_a_minute(caplog):
    caplog.set_level("INFO", module.__name__)
    spec = make_spec("elman", dtype="float32", sizes=(160, 1000, 10))
    graphs = GraphLayers(Network.create(spec, 0, "cuda"))
    graphs.prepare()
    assert len(graphs._graphs) == len(graphs._sizes) == 448
    assert "captured 448 CUDA graphs" in caplog.text
