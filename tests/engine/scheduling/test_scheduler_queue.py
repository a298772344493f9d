"""The queue of the scheduler: bounds that refuse, deadlines that pass, slots and counts that come back."""

import pytest
from helpers.simulated_device import Device, KnownWeights, sequences_of
from seqloom_server.engine.core.sequence import Op
from seqloom_server.errors import Reason, ServerError


def test_a_deadline_that_passes_in_the_queue_spends_no_device_time():
    device, weights = Device(), KnownWeights()
    late, stream = *device.open(weights, Op.INFER, deadline=1.0), *device.open(weights, Op.STREAM, deadline=1.0)
    device.push(late, 5, last=True)
    device.push(stream, 5)
    assert device.scheduler.next_deadline() == 1.0
    assert device.scheduler.expire(0.999) == []
    assert set(device.scheduler.expire(1.0)) == {late, stream}
    assert device.start() is None
    assert device.scheduler.next_deadline() is None
    assert (device.scheduler.waiting_steps, device.scheduler.waiting_bytes, device.scheduler.queued) == (0, 0, 0)


def test_a_whole_sequence_is_dropped_between_slices_when_its_deadline_passes():
    device, weights = Device(), KnownWeights()
    (long,) = device.open(weights, Op.INFER, deadline=0.5)
    device.push(long, 100_000, last=True)
    device.run()
    assert long.slot is not None
    assert device.scheduler.expire(0.6) == [long]
    assert device.start() is None
    assert weights.slots.in_use == 0


def test_a_whole_sequence_whose_frames_never_come_has_a_deadline_too():
    device, weights = Device(), KnownWeights()
    (halting,) = device.open(weights, Op.INFER, deadline=5.0)
    device.push(halting, 3)
    device.run()
    assert device.start() is None
    assert device.scheduler.next_deadline() == 5.0
    assert device.scheduler.expire(5.0) == [halting]


def test_a_live_session_that_has_begun_has_no_deadline_any_more():
    device, weights = Device(), KnownWeights()
    (stream,) = device.open(weights, Op.STREAM, deadline=1.0)
    device.push(stream, 5)
    device.run()
    device.push(stream, 5)
    assert device.scheduler.expire(100.0) == []
    assert sequences_of(device.run()) == [stream]


def test_a_slot_is_not_given_away_while_its_cancelled_owner_is_in_flight():
    device, weights = Device(), KnownWeights()
    (stream,) = device.open(weights, Op.STREAM)
    device.push(stream, 5)
    piece = device.start()
    slot = stream.slot
    device.scheduler.cancel(stream)
    (other,) = device.open(weights, Op.STREAM)
    device.push(other, 5)
    beside = device.start()
    assert other.slot.index != slot.index
    device.finish(piece)
    device.finish(beside)
    (third,) = device.open(weights, Op.STREAM)
    device.push(third, 5)
    device.start()
    assert third.slot.index == slot.index
    assert third.slot.generation == slot.generation + 1


@pytest.mark.parametrize(("bound", "most"), [("max_queue_items", 4), ("max_queue_steps", 40), ("max_queue_bytes", 160)])
def test_a_full_queue_refuses_at_once_and_says_when_to_come_again(bound, most):
    device, weights = Device(**{bound: most}), KnownWeights()
    for sequence in device.open(weights, Op.INFER, 3):
        device.push(sequence, 10, last=True)
    (refused,) = device.open(weights, Op.INFER)
    with pytest.raises(ServerError) as raised:
        device.push(refused, 10, last=True)
    assert raised.value.reason is Reason.OVERLOADED
    assert 0.05 <= raised.value.retry_after <= 5
    assert (device.scheduler.waiting_steps, device.scheduler.waiting_bytes, device.scheduler.queued) == (30, 120, 3)
    device.run()
    device.push(refused, 10, last=True)  # a repeat succeeds when there is room


def test_a_flood_of_whole_sequences_does_not_shut_out_live_frames():
    device, weights = Device(max_queue_items=100, max_queue_steps=1000), KnownWeights()
    (stream,) = device.open(weights, Op.STREAM)
    flood = device.open(weights, Op.INFER, 69, caller="flood")
    for sequence in flood[:68]:  # nine tenths of three quarters
        device.push(sequence, 10, last=True)
    with pytest.raises(ServerError, match="the caller's part of the queue is full"):
        device.push(flood[68], 10, last=True)
    for sequence in device.open(weights, Op.INFER, 6, caller="another"):
        device.push(sequence, 10, last=True)  # what is left is there for others
    device.push(stream, 10)
    assert stream in sequences_of(device.run())


@pytest.mark.parametrize("op", [Op.STREAM, Op.INFER])
def test_what_the_queue_could_never_take_is_refused_for_good(op):
    device, weights = Device(max_queue_steps=100), KnownWeights()
    (sequence,) = device.open(weights, op)
    with pytest.raises(ServerError, match="101 steps") as raised:
        device.push(sequence, 101)
    assert raised.value.reason is Reason.OVER_LIMIT
    assert raised.value.retry_after is None


def test_a_failed_slice_ends_its_members_and_gives_their_slots_back():
    device, weights = Device(), KnownWeights()
    streams = device.open(weights, Op.STREAM, 3)
    for stream in streams:
        device.push(stream, 5, 7)
    piece = device.start()
    device.scheduler.complete(piece, 0.1, 0.1, failed=True)
    assert weights.slots.in_use == 0
    assert all(stream.over and not stream.chunks for stream in streams)
    assert device.start() is None
    assert device.scheduler.waiting_steps == 0
