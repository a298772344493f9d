"""Who runs when: live frames on time, nobody starved, and batches as wide as what waits allows."""

import math

import numpy as np
import pytest
from helpers.simulated_device import Device, KnownWeights, make_chunk, sequences_of
from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.sequence import Op


@pytest.mark.parametrize("op", [Op.STREAM, Op.INFER])
def test_one_sequence_of_10000_steps_delays_live_frames_by_at_most_one_slice(op):
    device, weights = Device(), KnownWeights()
    streams = device.open(weights, Op.STREAM, 8)
    (long,) = device.open(weights, op)
    device.push(long, 10_000, last=op is Op.INFER)
    slices = 0
    while long.waiting_steps:
        piece = device.start()
        slices += 1
        assert piece.weights.cost.seconds(piece.steps, piece.cells) <= 0.02 * 1.001
        if slices % 3 == 0:  # frames come while the long one runs
            for stream in streams:
                device.push(stream, 5)
            device.finish(piece)
            piece = device.start()
            assert set(streams) <= set(sequences_of(piece)), "they are in the very next slice"
            assert all(member.steps == 5 for member in piece.members if member.sequence in streams)
            slices += 1
        device.finish(piece)
    assert slices > 100


def test_whole_sequences_that_ride_along_do_not_hold_up_live_frames():
    device, weights = Device(), KnownWeights()
    (stream,) = device.open(weights, Op.STREAM)
    whole = device.open(weights, Op.INFER, 20)
    for sequence in whole:
        device.push(sequence, 300, last=True)
    device.push(stream, 4)
    piece = device.run()
    assert len(piece.members) == 21
    assert piece.steps == 4


@pytest.mark.parametrize(("saturating", "other"), [(Op.STREAM, Op.INFER), (Op.INFER, Op.STREAM)])
def test_no_class_starves_another_of_its_share(saturating, other):
    device = Device()
    # models of their own, so that neither can ride along with the other
    flood, rest = KnownWeights("a"), KnownWeights("b")
    many = device.open(flood, saturating, 300)
    few = device.open(rest, other, 40)
    while device.now < 20:
        for sequence in (*many, *few):
            if sequence.waiting_steps < 100:
                device.push(sequence, 100)
        device.run()
    assert device.used[other] >= 0.99 * SchedulerLimits().shares[other] * device.now
    assert device.used[saturating] >= 0.99 * SchedulerLimits().shares[saturating] * device.now


def test_live_frames_come_first_and_whole_sequences_get_what_is_left():
    device = Device()
    live, whole = KnownWeights("a"), KnownWeights("b")
    (stream,) = device.open(live, Op.STREAM)
    (sequence,) = device.open(whole, Op.INFER)
    device.push(sequence, 10_000, last=True)
    device.run()
    device.push(stream, 3)
    assert sequences_of(device.run()) == [stream]
    assert sequences_of(device.run()) == [sequence]


def test_one_slow_slice_is_not_paid_back_with_a_row_of_slices():
    device = Device()
    live, whole = KnownWeights("a"), KnownWeights("b")
    streams = device.open(live, Op.STREAM, 2)
    (sequence,) = device.open(whole, Op.INFER)
    device.push(sequence, 10_000, last=True)
    for stream in streams:
        device.push(stream, 1000)
    piece = device.start()
    device.scheduler.complete(piece, 30.0, 30.0)  # something held the device up for half a minute
    in_a_row = 0
    while sequences_of(device.run()) == [sequence]:
        in_a_row += 1
    assert in_a_row <= 2


@pytest.mark.parametrize("op", [Op.STREAM, Op.INFER])
def test_a_short_sequence_does_not_wait_for_a_crowd_of_long_ones(op):
    device, weights = Device(max_queue_seconds=1e6), KnownWeights()
    for long in device.open(weights, op, 300):
        device.push(long, 3000, last=True)
    device.run()
    (short,) = device.open(weights, op)
    device.push(short, 2, last=True)
    crowd = device.scheduler.queued
    for _ in range(math.ceil(crowd / 32)):
        device.run()
    assert short.over


def test_models_take_turns():
    device = Device(max_batch_sequences=1)  # so that each always has one that waits
    weights = [KnownWeights(name) for name in "abc"]
    for each in weights:
        for sequence in device.open(each, Op.INFER, 2):
            device.push(sequence, 5000, last=True)
    order = [device.run().weights.model for _ in range(9)]
    assert order == list("abc") * 3


def test_sequences_pushed_while_the_device_is_busy_come_out_in_few_wide_slices():
    device, weights = Device(), KnownWeights()
    draw = np.random.default_rng(0)
    (first,) = device.open(weights, Op.INFER)
    device.push(first, 50, last=True)
    piece = device.start()
    for sequence in device.open(weights, Op.INFER, 64):
        device.push(sequence, int(draw.integers(1, 301)), last=True)
    device.finish(piece)
    widths = []
    while device.scheduler.queued:
        widths.append(len(device.run().members))
    assert np.mean(widths) > 16
    assert widths[0] >= 32


def test_a_long_sequence_among_many_short_ones_keeps_the_batch_wide():
    device, weights = Device(), KnownWeights()
    (long,) = device.open(weights, Op.INFER)
    device.push(long, 10_000, last=True)
    callers, widths = 63, []
    while not long.over:
        for sequence in device.open(weights, Op.INFER, callers):
            device.push(sequence, 30, last=True)
        piece = device.run()
        widths.append(len(piece.members))
        callers = sum(sequence.over for sequence in sequences_of(piece))  # each sends its next when it has its answer
    assert min(widths) >= 32


def test_short_members_do_not_wait_for_a_thin_tail_that_takes_long():
    device, weights = Device(), KnownWeights()
    for length in [30] * 15 + [150]:
        device.push(*device.open(weights, Op.INFER), length, last=True)
    piece = device.run()
    assert sum(member.final for member in piece.members) == 15
    assert piece.steps < 150


def test_a_slice_that_is_short_anyway_is_not_cut_for_being_thin():
    device, weights = Device(), KnownWeights(per_step=1e-5, per_cell=1e-6)
    for length in [1] * 15 + [300]:
        device.push(*device.open(weights, Op.INFER), length, last=True)
    assert all(member.final for member in device.run().members)


def test_sequences_of_an_expensive_model_share_slices_cut_short_rather_than_run_by_turns():
    device, weights = Device(), KnownWeights(per_step=1e-5, per_cell=1e-4)
    device.scheduler.live_sessions = 1
    for sequence in device.open(weights, Op.INFER, 64):
        device.push(sequence, 100, last=True)
    assert len(device.run().members) == 32


def test_chunks_of_live_frames_run_whole_where_a_wide_batch_of_them_fits():
    device, weights = Device(), KnownWeights(per_step=1e-4, per_cell=4e-5)
    for stream in device.open(weights, Op.STREAM, 64):
        device.push(stream, 10)
    piece = device.run()
    assert {member.steps for member in piece.members} == {10}
    assert 32 <= len(piece.members) < 64


def test_a_slice_has_no_more_rows_than_an_output_buffer_takes():
    device, weights = Device(), KnownWeights(per_step=1e-9, per_cell=1e-9, max_cells=100)
    for sequence in device.open(weights, Op.INFER, 64):
        device.push(sequence, 1000, last=True)
    pieces = [device.run() for _ in range(20)]
    assert all(64 <= piece.cells <= 100 for piece in pieces)


def test_an_end_that_waits_behind_frames_needs_no_slice_of_its_own():
    device, weights = Device(), KnownWeights()
    (stream,) = device.open(weights, Op.STREAM)
    device.scheduler.push(stream, [make_chunk(3), make_chunk(0, last=True, silent=True)], 0.0)
    (member,) = device.run().members
    assert member.steps == 3
    assert member.final
    assert device.start() is None
