"""Which sequences join a slice and how far they run, for any lengths: within the bounds, dense, and never nothing."""

import numpy as np
from helpers.simulated_device import KnownWeights, make_sequence
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.sequence import Member, Slice
from seqloom_server.engine.scheduling.slice_fit import SliceFit

lengths_strategy = st.lists(st.one_of(st.integers(0, 12), st.integers(0, 3000)), min_size=1, max_size=80)
costs = st.tuples(st.sampled_from([1e-6, 1e-4, 1e-2]), st.sampled_from([1e-7, 1e-5, 1e-3]))


def limits(grain):
    return SchedulerLimits(max_batch_steps=4000, grain_seconds=grain)


def size(lengths, cut):
    sizes = np.minimum(lengths, cut)
    return int(sizes.max(initial=0)), int(sizes.sum()), int(sizes.max(initial=0)) * int((sizes > 0).sum())


@settings(max_examples=300, deadline=None)
@given(lengths_strategy, costs, st.sampled_from([0.0, 0.005]))
def test_a_slice_keeps_every_bound_and_is_no_smaller_than_it_must_be(lengths, cost, grain):
    weights = KnownWeights(per_step=cost[0], per_cell=cost[1], max_cells=2000)
    bounds, lengths = limits(grain), np.array(lengths)
    count, cut = SliceFit(bounds, 0.02, Slice(weights, [], 0, 0)).fit(lengths)
    assert 1 <= count <= len(lengths)
    assert cut >= 1

    most = max(0.02, 2 * weights.cost.seconds(1, 1))

    def fits(count, cut):
        steps, cells, padded = size(lengths[:count], cut)
        return padded <= 4000 and cells <= 2000 and weights.cost.seconds(steps, cells) <= most

    steps, cells, padded = size(lengths[:count], cut)
    assert fits(count, cut) or cells <= 1
    assert cells >= 0.75 * padded or weights.cost.seconds(steps, cells) <= grain
    if count < len(lengths):
        assert not fits(count + 1, cut) or count >= 32 or not fits(count + 1, size(lengths, 10**9)[0])
    longer = size(lengths[:count], cut + 1)
    if longer[0] > cut:  # there is more to run: why was it cut here?
        everyone = size(lengths, cut + 1)
        thin = everyone[1] < 0.75 * everyone[2] and weights.cost.seconds(*everyone[:2]) > grain
        assert not fits(count, cut + 1) or thin


@settings(max_examples=200, deadline=None)
@given(lengths_strategy, st.integers(1, 40), st.integers(1, 60), costs)
def test_those_that_join_others_run_no_further_and_keep_the_bounds(lengths, width, taken, cost):
    weights = KnownWeights(per_step=cost[0], per_cell=cost[1], max_cells=2000)
    lengths = np.array(lengths)
    members = [
        Member(make_sequence(weights), [], taken, 0, None, False, None, True, False, False) for _ in range(width)
    ]
    piece = Slice(weights, members, taken, taken * width)
    count, cut = SliceFit(limits(0.005), 0.02, piece).fit(lengths)
    assert 0 <= count <= len(lengths)
    assert cut <= taken
    if count:
        _, cells, _ = size(lengths[:count], cut)
        wide = width + int((np.minimum(lengths[:count], cut) > 0).sum())
        assert taken * wide <= 4000
        assert piece.cells + cells <= 2000
        assert weights.cost.seconds(taken, piece.cells + cells) <= max(0.02, 2 * weights.cost.seconds(1, 1))
        assert piece.cells + cells >= 0.75 * taken * wide


def test_where_empty_cells_cost_as_much_as_others_no_slice_is_thin():
    weights = KnownWeights(per_step=1e-9, per_cell=1e-9)
    count, cut = SliceFit(limits(0.0), 0.02, Slice(weights, [], 0, 0)).fit(np.array([1] * 15 + [300]))
    assert (count, cut) == (16, 1)


def test_where_a_slice_costs_more_than_it_may_its_members_still_come_together():
    lengths = np.full(64, 10)
    for cost in ({"per_slice": 45e-3, "per_step": 3e-3}, {"per_slice": 5e-3, "per_step": 50e-3}):
        weights = KnownWeights(per_cell=1e-4, **cost)
        count, _ = SliceFit(limits(0.005), 0.04, Slice(weights, [], 0, 0)).fit(lengths)
        assert count >= 32
