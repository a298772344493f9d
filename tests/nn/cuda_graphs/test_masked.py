"""Rectangles with masks against packed rows: every cell, layers, ragged lengths, states; padding stays invisible."""

import numpy as np
import pytest
import torch
from helpers.masked_rectangles import run_masked
from helpers.ragged_batches import make_network, make_sequences, make_state, run
from helpers.specs import CELLS, make_spec, specs
from helpers.tolerances import alike
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.nn.cuda_graphs import buckets
from seqloom_server.nn.cuda_graphs.masked_layers import MaskedLayers, takes

TOLERANCE = {"float32": alike(rtol=1e-6)["rtol"], "float64": 1e-12}


@st.composite
def cases(draw):
    spec = draw(specs())
    return spec, draw(st.lists(st.integers(1, 90), min_size=1, max_size=12)), draw(st.sampled_from([0.0, 1e3, -7.0]))


@settings(max_examples=40, deadline=None)
@given(cases())
def test_a_rectangle_gives_what_packed_rows_give_whatever_its_padding_holds(case):
    spec, lengths, padding = case
    network = make_network(spec)
    sequences, state = make_sequences(spec, lengths), make_state(spec, len(lengths))
    expected, after_expected = run(network, sequences, state)
    hidden, after = run_masked(MaskedLayers(network, max_padding=1.0), sequences, state, padding=padding)
    tolerance = {"rtol": TOLERANCE[spec.dtype], "atol": TOLERANCE[spec.dtype]}
    for got, wanted in [*zip(hidden, expected, strict=True), *zip(after, after_expected, strict=True)]:
        np.testing.assert_allclose(got, wanted, **tolerance)


@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_a_rectangle_in_blocks_is_the_whole_one(cell, activation):
    spec = make_spec(cell, activation, layers=2)
    masked = MaskedLayers(make_network(spec))
    rows = torch.from_numpy(np.stack(make_sequences(spec, [40] * 3), 1))
    left, state = torch.tensor([40, 17, 0]), tuple(map(torch.from_numpy, make_state(spec, 3)))
    hidden, after = masked.block(rows, left, state)
    first, between = masked.block(rows[:16], left, state)
    second, last = masked.block(rows[16:], left - 16, between)
    torch.testing.assert_close(torch.cat([first, second]), hidden)
    torch.testing.assert_close(last, after)
    for part, before in zip(after, state, strict=True):
        assert torch.equal(part[:, 2], before[:, 2]), "it had no steps"


@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_bfloat16_has_the_digits_that_the_packed_way_has(cell, activation):
    full = make_network(make_spec(cell, activation, layers=2, dtype="float32", sizes=(16, 32, 5), precision="full"))
    half = type(full)(
        make_spec(cell, activation, layers=2, dtype="float32", sizes=(16, 32, 5), precision="bf16"),
        full.parameters(),
        "cpu",
    )
    sequences, state = make_sequences(full.spec, [40, 33, 21, 40]), make_state(full.spec, 4)
    exact, _ = run(full, sequences, state)
    hidden, after = run_masked(MaskedLayers(half, max_padding=1.0), [*sequences], state)
    worst = max(np.abs(got - wanted).max() for got, wanted in zip(hidden, exact, strict=True))
    largest = max(np.abs(wanted).max() for wanted in exact)
    assert 0 < worst < 0.03 * largest, "near, but not in full precision"
    assert all(part.dtype == np.float32 for part in after)


def test_what_cannot_be_masked_is_said():
    assert takes(make_spec("lstm"))
    assert not takes(make_spec("gru", bidirectional=True))
    assert not takes(make_spec("gru", conv_channels=2, conv_width=3))


@given(st.lists(st.integers(1, 500), min_size=1, max_size=300))
def test_a_rectangle_holds_its_sequences_and_pads_no_more_than_a_quarter(lengths):
    steps, count, cells = max(lengths), len(lengths), sum(lengths)
    found = buckets.rectangle(steps, count, cells)
    if found is None:
        smallest = buckets.rectangle(steps, count, cells, 1.0)
        assert smallest is None or cells < 0.75 * smallest.cells
        assert count <= buckets.GRID.rows[-1] or smallest is None
        return
    assert found.steps >= steps
    assert found.rows >= count
    assert found.cells - cells <= 0.25 * found.cells
    assert set(found.blocks) <= set(buckets.GRID.steps)
    assert found.rows in buckets.GRID.rows


def test_equal_sequences_of_any_number_and_length_waste_less_than_a_third():
    for steps in (1, 2, 9, 10, 17, 31, 33, 100, 129):
        for count in range(1, 257):
            found = buckets.rectangle(steps, count, steps * count, 1.0)
            assert steps * count > 2 / 3 * found.cells
