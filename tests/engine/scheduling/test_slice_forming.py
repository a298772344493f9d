"""Who joins a slice when many callers have work: it is never empty, what was begun ends, and the first one's ends."""

import itertools

import pytest
from helpers.simulated_device import Device, KnownWeights, sequences_of
from seqloom_server.engine.core.sequence import Op
from seqloom_server.engine.scheduling.slice_fit import MIN_WIDTH

MOST = 10_000  # slices


def crowd(device, weights, callers, steps):
    """Opens a whole sequence of each caller; all of them wait."""
    sequences = []
    for number in range(callers):
        sequences += device.open(weights, Op.INFER, caller=f"{weights.model} {number}")
        device.push(sequences[-1], steps, last=True)
    return sequences


def run_all(device):
    """Runs until nothing waits; returns the slices."""
    slices = []
    while (piece := device.start()) is not None:
        slices.append(device.finish(piece))
        assert len(slices) < MOST
    return slices


@pytest.mark.parametrize("live", [0, 1])
@pytest.mark.parametrize(
    ("callers", "models", "steps"), [(1, 40, 300), (33, 2, 300), (300, 1, 300), (1500, 1, 60), (300, 2, 200)]
)
def test_more_callers_than_may_begin_something_are_all_served(callers, models, steps, live):
    device = Device(slice_seconds=0.04, max_queue_seconds=1e9)
    device.scheduler.live_sessions = live
    sequences = [
        crowd(device, KnownWeights(f"m{number}", per_step=5e-4, per_cell=7.7e-5), callers, steps)
        for number in range(models)
    ]
    slices = run_all(device)
    assert all(each.over and each.steps_done == steps for each in itertools.chain(*sequences))
    if callers > MIN_WIDTH:
        wide = sum(piece.cells for piece in slices) / sum(piece.steps for piece in slices)
        assert wide > MIN_WIDTH / 2, "and not one by one"


def test_one_caller_under_another_model_may_begin_though_enough_have_begun():
    device = Device(slice_seconds=0.02, max_queue_seconds=1e9)
    crowd(device, KnownWeights("a"), 32, 300)
    (one,) = crowd(device, KnownWeights("b"), 1, 300)
    run_all(device)
    assert one.over


def test_begun_and_not_ended_are_few_at_any_time_however_many_callers_there_are():
    device = Device(slice_seconds=0.02, max_queue_seconds=1e9)
    sequences = crowd(device, KnownWeights(), 500, 100)
    while (piece := device.start()) is not None:
        device.finish(piece)
        assert sum(each.started and not each.over for each in sequences) <= 2 * MIN_WIDTH


@pytest.mark.parametrize("flood", [256, 4000])
def test_a_modest_callers_sequence_waits_for_one_slice_and_ends_in_the_next(flood):
    """As at H=1000: 45 steps alone take 25 ms, and 77 microseconds more for each in company."""
    device = Device(max_queue_seconds=1e9)
    weights = KnownWeights(per_slice=1e-3, per_step=4e-4, per_cell=7.7e-5)
    many = device.open(weights, Op.INFER, flood, caller="flood")
    for number, sequence in enumerate(many):
        device.push(sequence, 20 + number % 45, last=True)
    device.run()  # the flood's first slice, of all the time there is
    for _ in range(20):
        piece, arrived = device.start(), device.now
        (modest,) = device.open(weights, Op.INFER, caller="modest")
        device.push(modest, 45, last=True)
        device.finish(piece)
        before = device.now
        piece = device.run()
        assert modest in sequences_of(piece), "it is in the very next slice"
        assert modest.over, "to its end"
        assert device.now - before <= 0.16 * 1.01
        assert device.now - arrived <= 2 * 0.2
        if not device.scheduler.queued:
            break


def test_a_lone_callers_slices_are_as_long_as_slices_may_be():
    device, weights = Device(max_queue_seconds=1e9), KnownWeights(per_step=4e-4, per_cell=7.7e-5)
    for sequence in device.open(weights, Op.INFER, 1000, caller="one"):
        device.push(sequence, 45, last=True)
    start = device.now
    device.run()
    assert device.now - start > 0.18
