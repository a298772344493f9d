"""What cannot be in time is refused at the door, with a time to come again that is true; and no mistake lasts."""

import contextlib

import pytest
from helpers.simulated_device import Device, KnownWeights, sequences_of
from seqloom_server.engine.core.sequence import Op
from seqloom_server.errors import Overload, Reason, ServerError


def call(device, weights, steps=10, *, timeout=None, **more):
    """Pushes a whole sequence. Raises ServerError."""
    deadline = None if timeout is None else device.now + timeout
    (sequence,) = device.open(weights, Op.INFER, deadline=deadline, **more)
    try:
        device.push(sequence, steps, last=True)
    except ServerError:
        device.scheduler.cancel(sequence)
        raise
    return sequence


def refusal(device, weights, steps=10, **more):
    with pytest.raises(ServerError) as raised:
        call(device, weights, steps, **more)
    assert (raised.value.reason, raised.value.cause) == (Reason.OVERLOADED, Overload.TOO_LATE)
    assert raised.value.retry_after > 0
    return raised.value


def backlog_of(device):
    return device.scheduler._admission.backlog


def run_until(device, time):
    while device.now < time and (piece := device.start()) is not None:
        device.finish(piece)
    device.now = max(device.now, time)


@pytest.mark.parametrize("crowd", [20, 60])
def test_a_caller_that_is_refused_is_admitted_and_served_when_it_comes_again(crowd):
    device, weights = Device(max_batch_sequences=4), KnownWeights()
    for _ in range(crowd):
        call(device, weights, 100)
    piece, repeats, again = device.start(), 0, None
    while again is None:
        try:
            again = call(device, weights, 100, timeout=0.5)
        except ServerError as error:
            repeats += 1
            if piece is not None:
                device.finish(piece)
                piece = None
            run_until(device, device.now + error.retry_after)
    assert 1 <= repeats <= 3, "what it was told was true"
    while not again.over:
        device.run()
        assert device.scheduler.expire(device.now) == []
    assert again.steps_done == 100
    assert device.now <= again.deadline


def test_a_refusal_leaves_nothing_behind():
    device, weights = Device(), KnownWeights()
    call(device, weights, 100)
    device.start()
    before = backlog_of(device).seconds, backlog_of(device).sequences
    refusal(device, weights, 1000, timeout=0.5)
    assert (backlog_of(device).seconds, backlog_of(device).sequences) == before
    assert (device.scheduler.queued, device.scheduler.waiting_steps) == (0, 0)
    assert device.scheduler.next_deadline() is None


def test_one_that_says_its_length_is_refused_before_its_frames_come():
    device, weights = Device(), KnownWeights()
    call(device, weights, 100)
    device.start()
    (long,) = device.open(weights, Op.INFER, deadline=0.5, total_steps=1000)
    with pytest.raises(ServerError) as raised:
        device.scheduler.reserve(long, 0.0)
    assert raised.value.cause is Overload.TOO_LATE
    (short,) = device.open(weights, Op.INFER, deadline=0.5, total_steps=100)
    device.scheduler.reserve(short, 0.0)
    assert short.predicted <= 0.5
    assert backlog_of(device).reserved == pytest.approx(100 * weights.cost.cell_seconds(64))
    device.push(short, 60)
    device.push(short, 40, last=True)
    assert backlog_of(device).seconds == pytest.approx(100 * weights.cost.cell_seconds(64))
    assert backlog_of(device).reserved == 0


def test_what_was_said_and_does_not_come_is_soon_forgotten_and_refuses_nobody():
    device, weights = Device(), KnownWeights()
    call(device, weights, 100)
    device.run()
    silent = device.open(weights, Op.INFER, 50, caller="silent", total_steps=100)
    for sequence in silent:
        device.scheduler.reserve(sequence, device.now)
    (early,) = device.open(weights, Op.INFER, deadline=device.now + 0.8, caller="silent")
    with pytest.raises(ServerError):
        device.push(early, 100, last=True)  # what was said may come at any moment
    for now in range(1, 20):
        device.now = now
        (call_,) = device.open(weights, Op.INFER, deadline=now + 0.5, caller="silent" if now % 2 else "other")
        device.push(call_, 100, last=True)
        device.run()
        assert call_.over
    for sequence in silent:
        device.scheduler.cancel(sequence)
    assert (backlog_of(device).reserved, backlog_of(device)._lanes) == (0, {})


def test_what_was_said_and_does_not_come_ends_at_its_deadline():
    device, weights = Device(), KnownWeights()
    (silent,) = device.open(weights, Op.INFER, deadline=5.0, total_steps=1000)
    device.scheduler.reserve(silent, 0.0)
    assert device.start() is None
    assert device.scheduler.next_deadline() == 5.0
    assert device.scheduler.expire(5.0) == [silent]
    assert (backlog_of(device).seconds, backlog_of(device).sequences, backlog_of(device)._lanes) == (0, 0, {})


def test_none_waits_for_longer_than_the_queue_may_hold_it_even_without_a_deadline():
    device, weights = Device(max_queue_seconds=2.0, max_batch_sequences=4), KnownWeights()
    with contextlib.suppress(ServerError):
        for _ in range(1000):
            call(device, weights, 500)
    refusal(device, weights, 500)
    assert 1.0 < backlog_of(device).seconds < 3.0


def test_what_has_waited_for_too_long_is_dropped_before_it_begins_and_what_has_begun_is_not():
    device, weights = Device(max_queue_seconds=2.0, max_batch_sequences=2), KnownWeights()
    begun, waiting = call(device, weights, 1000), call(device, weights, 10)
    piece = device.start()
    assert begun in sequences_of(piece)
    late = call(device, weights, 10)
    device.now = 10.0
    device.scheduler.complete(piece, 10.0, device.now)
    device.run()
    assert device.scheduler.expire(device.now) == [late]
    assert waiting.over
    while not begun.over:
        device.run()
    assert (begun.steps_done, late.steps_done) == (1000, 0)


def test_a_mistake_of_the_model_does_not_last():
    """All calls would be late by what the model says: one is tried whenever nothing else is there."""
    device, weights = Device(), KnownWeights(per_step=1.0)
    tried = call(device, weights, 10, timeout=1.0)
    piece = device.start()
    assert sequences_of(piece) == [tried], "it is not dropped either"
    refusal(device, weights, 10, timeout=1.0)
    weights.cost.per_step = 1e-3  # it is seen what it takes
    device.finish(piece)
    assert not device.scheduler.expire(device.now)
    call(device, weights, 10, timeout=1.0)


@pytest.mark.parametrize("op", [Op.STREAM, Op.INFER])
def test_a_device_that_has_become_slow_is_told_within_a_second(op):
    device, weights = Device(max_batch_sequences=1), KnownWeights()
    call(device, weights, 100, timeout=0.3)
    device.run()
    while device.now < 1.0:
        (sequence,) = device.open(weights, op)
        device.push(sequence, 15, last=True)
        piece = device.start()
        took = 5 * weights.cost.seconds(piece.steps, piece.cells)
        device.now += took
        device.scheduler.complete(piece, took, device.now)
    refusal(device, weights, 100, timeout=0.3)
    device.now += 10.0  # and it may have become fast again
    call(device, weights, 100, timeout=0.3)


def test_a_deadline_that_has_passed_is_no_overload():
    device, weights = Device(), KnownWeights()
    call(device, weights, 100)
    device.start()
    late = call(device, weights, 10, timeout=-1.0)
    assert device.scheduler.expire(device.now) == [late]


@pytest.mark.parametrize("timeout", [None, 60.0, 3e7])
def test_a_model_that_is_far_off_keeps_nobody_waiting_beyond_the_bound(timeout):
    """A timeout that is far away is no leave to wait for longer than max_queue_seconds."""
    device, weights = Device(max_queue_seconds=2.0, max_batch_sequences=4), KnownWeights()
    sequences = [call(device, weights, 100, timeout=timeout) for _ in range(150)]
    begun = {}
    while (piece := device.start()) is not None:
        for sequence in sequences_of(piece):
            begun.setdefault(sequence, device.now)
        device.finish(piece)
        device.now += 5 * weights.cost.seconds(piece.steps, piece.cells)  # which its model does not know
        device.scheduler.expire(device.now)
    longest_slice = 1.5
    assert max(begun.values()) <= 2.0 + longest_slice
    assert len(begun) < len(sequences)


def test_what_was_said_counts_until_it_comes():
    device, weights = Device(), KnownWeights()
    (sequence,) = device.open(weights, Op.INFER, total_steps=5000)
    device.scheduler.reserve(sequence, device.now)
    said = backlog_of(device).reserved
    device.push(sequence, 1000)
    assert backlog_of(device).reserved == pytest.approx(0.8 * said)
    assert backlog_of(device).seconds == pytest.approx(0.2 * said)
    device.push(sequence, 4000, last=True)
    assert (backlog_of(device).reserved, len(backlog_of(device)._reservations)) == (0, 0)


def test_one_that_says_its_length_is_dropped_as_soon_as_that_cannot_be_done_in_time():
    device, weights = Device(), KnownWeights()
    (sequence,) = device.open(weights, Op.INFER, deadline=5.0, total_steps=3000)
    device.scheduler.reserve(sequence, device.now)
    while not sequence.over and device.now < 5.0:
        device.push(sequence, 100)  # far too slowly: at 400 steps a second
        run_until(device, device.now + 0.25)
        device.scheduler.expire(device.now)
    assert sequence.over
    assert device.now <= 3.5, "when the 1,600 left need 1.76 seconds"


def test_nothing_is_kept_of_what_was_said_and_came_at_once():
    device, weights = Device(), KnownWeights()
    for _ in range(100):
        (sequence,) = device.open(weights, Op.INFER, deadline=device.now + 10.0, total_steps=10)
        device.scheduler.reserve(sequence, device.now)
        device.push(sequence, 10, last=True)
        device.run()
    assert len(backlog_of(device)._reservations) == 0


def test_frames_that_cannot_run_yet_refuse_nobody():
    device, weights = Device(), KnownWeights(whole_only=True)
    for _ in range(63):
        device.push(*device.open(weights, Op.INFER, caller="slow"), 10)  # the last frames do not come
    device.now = 100.0
    for _ in range(5):
        sequence = call(device, weights, 200, timeout=1.0, caller="other")
        device.run()
        assert sequence.over


def test_slices_that_failed_teach_nothing():
    device, weights = Device(), KnownWeights()
    for _ in range(5):
        call(device, weights, 100)
        piece = device.start()
        device.now += 1e-3
        device.scheduler.complete(piece, 1e-3, device.now, failed=True)
    assert device.scheduler._admission.pace(device.now) == 1.0


def test_a_timeout_shorter_than_the_work_alone_is_no_overload_once_the_cost_is_known():
    device, weights = Device(), KnownWeights()
    for _ in range(20):
        call(device, weights, 100)
        piece = device.run()
        weights.cost.observe(piece.steps, piece.cells, weights.cost.seconds(piece.steps, piece.cells))
    with pytest.raises(ServerError) as raised:
        call(device, weights, 200, timeout=0.15)
    assert (raised.value.reason, raised.value.retry_after) == (Reason.DEADLINE_EXCEEDED, None)
    device.now += 2.0  # since the cost may be wrong, one is tried when nothing ran for a while
    call(device, weights, 200, timeout=0.15)
