"""Graphs of buckets, played by functions in place of a device's: what is run, where cuDNN is, and what it gives."""

import logging

import numpy as np
import pytest
from helpers.masked_rectangles import run_masked
from helpers.ragged_batches import make_network, make_sequences, make_state, run
from helpers.specs import CELLS, make_spec
from seqloom_server.nn.cuda_graphs.buckets import Grid
from seqloom_server.nn.cuda_graphs.graph_layers import GraphLayers

GRID = Grid((1, 2, 4, 8, 16, 32), (1, 2, 4, 8))


def prepared(network, faster=lambda steps, rows: True, **more):
    """Graphs whose recordings are the functions themselves; faster: whether a bucket's is faster than cuDNN."""
    played, at = [], []

    def record(run_it):
        size = graphs._sizes[len(at)]
        at.append(size)

        def replay():
            played.append(size)
            run_it()

        return replay

    def seconds(run_it):
        before = len(played)
        run_it()
        return 1.0 if len(played) == before or not faster(*at[-1]) else 0.5

    graphs = GraphLayers(network, record=record, seconds=seconds, grid=GRID, **more)
    graphs.prepare()
    played.clear()
    return graphs, played


@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_blocks_one_behind_the_other_are_what_packed_rows_give(cell, activation):
    network = make_network(make_spec(cell, activation, layers=2))
    graphs, played = prepared(network, max_padding=0.5)
    for lengths in ([100, 100, 99, 98, 100], [8, 8, 8, 8, 7, 7, 7, 8], [1], [1, 1], [40, 40]):
        sequences, state = make_sequences(network.spec, lengths), make_state(network.spec, len(lengths))
        expected, after_expected = run(network, sequences, state)
        rows = 8 if len(lengths) > 4 else len(lengths)
        hidden, after = run_masked(graphs, sequences, state)
        for got, wanted in [*zip(hidden, expected, strict=True), *zip(after, after_expected, strict=True)]:
            np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)
        assert sum(steps for steps, _ in played) >= max(lengths)
        assert {count for _, count in played} == {rows}
        played.clear()


def test_each_bucket_is_left_to_whichever_was_faster():
    graphs, _ = prepared(make_network(make_spec("lstm")), faster=lambda steps, rows: rows <= 2)
    assert graphs.rectangle(np.array([2, 2])).rows == 2
    assert graphs.rectangle(np.array([4, 4])) is None
    assert graphs.rectangle(np.full(64, 1)).blocks == (32, 32)
    assert graphs.rectangle(np.array([300])) is None, "no bucket is so wide"


def test_what_cannot_be_recorded_is_left_to_cudnn_with_one_line(caplog):
    def record(_):
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = GraphLayers(make_network(make_spec("gru")), record=record, seconds=lambda run_it: 1.0, grid=GRID)
    with caplog.at_level(logging.WARNING):
        graphs.prepare()
    assert len(caplog.records) == 1
    assert "cuDNN" in caplog.text
    assert graphs.rectangle(np.array([2, 2])) is None


def test_buffers_are_for_the_largest_bucket_and_shared():
    spec = make_spec("lstm", layers=3)
    graphs, _ = prepared(make_network(spec))
    most = GRID.steps[-1] * GRID.rows[-1]
    assert graphs.nbytes == 8 * (most * (3 + 5) + GRID.rows[-1] + 2 * 3 * GRID.rows[-1] * 5)
