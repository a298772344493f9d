"""The cost of slices: learned from those that ran, whatever they were like, and never nonsense."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.engine.core.slice_cost import SliceCost

powers = st.floats(-7, -2).map(lambda power: 10.0**power)


@settings(deadline=None)
@given(powers, powers, powers, st.integers(0, 2**32))
def test_it_learns_what_a_slice_a_step_and_a_cell_cost(per_slice, per_step, per_cell, seed):
    cost, draw = SliceCost(1e6, 1e10), np.random.default_rng(seed)

    def true(steps, cells):
        return per_slice + per_step * steps + per_cell * cells

    for _ in range(400):
        steps, members = int(2 ** draw.uniform(0, 8.3)), 2 ** draw.uniform(0, 8)
        cells = int(steps * members * draw.uniform(0.5, 1)) + 1
        cost.observe(steps, cells, true(steps, cells) * draw.uniform(0.9, 1.1))
    for steps, cells in ((1, 64), (10, 640), (200, 200), (100, 20_000)):
        assert cost.seconds(steps, cells) == pytest.approx(true(steps, cells), rel=0.25)


def test_slices_that_are_much_alike_teach_what_they_take():
    cost, draw = SliceCost(1e6, 1e10), np.random.default_rng(0)
    ratio = cost.per_step / cost.per_cell
    for _ in range(500):
        cost.observe(10, 10 * int(draw.integers(60, 69)), 0.05 * draw.uniform(0.8, 1.2))
    assert cost.seconds(10, 640) == pytest.approx(0.05, rel=0.2)
    # they cannot tell a step's cost from a cell's: noise must not decide on it
    assert 0.1 * ratio < cost.per_step / cost.per_cell < 10 * ratio


def test_a_device_that_becomes_slower_is_noticed():
    cost = SliceCost(1e6, 1e10)
    for scale in (1, 5):
        for steps in range(1, 300):
            cost.observe(steps, steps * (1 + steps % 50), scale * (1e-5 * steps + 1e-6 * steps * (1 + steps % 50)))
    assert cost.seconds(100, 3000) == pytest.approx(5 * 4e-3, rel=0.2)


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10**6), st.floats(0, 100)), max_size=100))
def test_whatever_was_observed_costs_stay_above_nothing(observed):
    cost = SliceCost(1e6, 1e10)
    for steps, cells, seconds in observed:
        cost.observe(steps, max(steps, cells), seconds)
        assert 0 < cost.per_slice < 1e6
        assert 0 < cost.per_step < 1e6
        assert 0 < cost.per_cell < 1e6
        assert cost.efficient_width >= 1


def test_in_a_wide_batch_a_fifth_of_the_time_goes_to_the_steps():
    cost = SliceCost(1e6, 1e10)
    cost.per_slice, cost.per_step, cost.per_cell = 0.0, 3e-4, 1e-4
    assert cost.efficient_width == 12
    assert 10 * cost.per_step / cost.seconds(10, 10 * cost.efficient_width) == pytest.approx(0.2)


def test_thin_slices_do_not_make_a_step_look_dear():
    """Slices of one step tell nothing of what a second one costs; were all that is not the cells' put on the step,
    slices would stay as thin as they are."""
    cost = SliceCost(1e6, 1e10)
    for steps, cells in ((1, 1), (16, 16), (8, 64), (4, 256)):  # as a warm-up has them
        cost.observe(steps, cells, 5e-3 + 1e-4 * steps + 9e-5 * cells)
    before = cost.per_step
    for k in range(300):
        cost.observe(1, 36 + k % 5, 5e-3 + 1e-4 + 9e-5 * (36 + k % 5))
    assert cost.per_step < 4 * max(before, 1e-4)
    assert cost.seconds(10, 360) < 0.8 * 10 * cost.seconds(1, 36)


@pytest.mark.parametrize("seed", range(12))
def test_noise_on_thin_slices_does_not_decide_what_a_cell_costs(seed):
    """Few streams for long, then many: the first of their slices must be of about the time that was meant."""
    cost, draw = SliceCost(2e7, 5e10), np.random.default_rng(seed)

    def observe(steps, cells):
        cost.observe(steps, cells, (5e-3 + 1e-4 * steps + 9e-5 * cells) * draw.lognormal(0, 0.15))

    for steps, cells in ((1, 1), (16, 16), (8, 64), (4, 256)) * 2:
        observe(steps, cells)
    for _ in range(2000):
        observe(1, int(draw.integers(1, 4)))
    assert 3e-5 < cost.per_cell < 3e-4


def test_what_takes_much_longer_than_expected_is_learned_at_once():
    cost = SliceCost(2e7, 5e10)
    for k in range(100):
        cost.observe(1, 1 + k % 3, 5e-3)
    cost.observe(40, 4000, 1.0)
    assert cost.seconds(40, 4000) > 0.2


def test_slices_without_steps_or_of_nonsense_teach_nothing():
    cost = SliceCost(1e6, 1e10)
    before = cost.seconds(3, 5)
    for steps, cells, seconds in ((0, 0, 1.0), (1, 0, 1.0), (1, 1, 0.0), (1, 1, float("nan")), (1, 1, float("inf"))):
        cost.observe(steps, cells, seconds)
    assert cost.seconds(3, 5) == before
    assert cost.seconds(0, 0) == 0
