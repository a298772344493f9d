"""The bounds on what waits: items, steps and bytes, in all and for each caller, and a quarter kept for live frames."""

import pytest
from helpers.simulated_device import KnownWeights, make_sequence
from hypothesis import given
from hypothesis import strategies as st
from seqloom_server.engine.admission.caller_share import SharedBound, admits
from seqloom_server.engine.admission.queue_bounds import QueueBounds
from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.sequence import Op
from seqloom_server.errors import Overload, Reason, ServerError

WEIGHTS = KnownWeights()
SIZES = {"max_queue_items": (1, 0, 0), "max_queue_steps": (0, 1, 0), "max_queue_bytes": (0, 0, 1)}


def make_bounds(**limits):
    return QueueBounds(SchedulerLimits(**limits))


def push(bounds, op, caller, *, steps=0, nbytes=0, weights=WEIGHTS):
    """Queues a new sequence. Raises ServerError."""
    sequence = make_sequence(weights, op, caller=caller)
    bounds.check(sequence, steps, nbytes)
    bounds.count(sequence, 1, steps, nbytes)
    return sequence


def fill(bounds, op, caller, **more):
    """Returns how many a caller gets in until it is refused, and the refusal."""
    count = 0
    while count < 10_000:
        try:
            push(bounds, op, caller, **more)
        except ServerError as error:
            return count, error
        count += 1
    raise AssertionError("no end of them")


@pytest.mark.parametrize("unit", SIZES)
def test_each_caller_gets_nine_tenths_of_what_is_left_and_live_frames_a_quarter_of_their_own(unit):
    bounds = make_bounds(**{unit: 1000})
    _, steps, nbytes = SIZES[unit]
    got = []
    for caller, whose in (("a", "the caller's part of the queue is full"), ("b", ""), ("c", "")):
        count, error = fill(bounds, Op.INFER, caller, steps=steps, nbytes=nbytes)
        assert (error.reason, error.cause) == (Reason.OVERLOADED, Overload.QUEUE_FULL)
        assert whose in error.message
        got.append(count)
    assert got[0] == pytest.approx(0.9 * 750, abs=1)
    assert got[1] == pytest.approx(0.9 * (750 - got[0]), abs=1)
    assert got[2] >= 5
    more, _ = fill(bounds, Op.STREAM, "a", steps=steps, nbytes=nbytes)
    free = 1000 - sum(got) - more
    assert got[0] + more == pytest.approx(9 * free, abs=9), "a caller's part is of both"
    live, _ = fill(bounds, Op.STREAM, "d", steps=steps, nbytes=nbytes)
    assert live == pytest.approx(0.9 * free, abs=1)


@pytest.mark.parametrize(("seconds", "retry"), [(0.0, 0.05), (1.0, 0.5), (100.0, 5.0)])
def test_a_refusal_says_when_half_of_what_waits_will_have_run(seconds, retry):
    bounds = make_bounds(max_queue_items=4)
    _, error = fill(bounds, Op.INFER, "a", weights=KnownWeights(per_slice=seconds, per_step=0.0, per_cell=0.0))
    assert error.retry_after == pytest.approx(retry)


def test_a_sequence_that_is_queued_or_runs_already_is_no_item_more():
    bounds = make_bounds(max_queue_items=1)
    sequence = push(bounds, Op.STREAM, "a")
    other = make_sequence(WEIGHTS, Op.STREAM, caller="a", in_flight=True)
    bounds.check(other, 10, 40)
    sequence.chunks.append(object())
    bounds.check(sequence, 10, 40)
    with pytest.raises(ServerError):
        push(bounds, Op.STREAM, "b")


def test_what_no_empty_queue_takes_is_refused_for_good_even_while_it_is_full():
    bounds = make_bounds(max_queue_steps=100)
    fill(bounds, Op.STREAM, "a", steps=1)
    for op, steps in ((Op.STREAM, 101), (Op.INFER, 76)):
        with pytest.raises(ServerError) as raised:
            push(bounds, op, "b", steps=steps)
        assert raised.value.reason is Reason.OVER_LIMIT
        assert raised.value.retry_after is None


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from([Op.STREAM, Op.INFER]), st.integers(0, 40), st.booleans()),
        max_size=80,
    )
)
def test_counts_are_those_of_what_is_queued_and_nothing_is_kept_of_callers_who_have_gone(work):
    bounds, queued = make_bounds(max_queue_items=20, max_queue_steps=300), []
    for caller, op, steps, leaves in work:
        if leaves and queued:
            sequence, count = queued.pop(0)
            bounds.count(sequence, -1, -count, -4 * count)
            continue
        own = [count for sequence, count in queued if sequence.caller == caller]
        part = 1 if op is Op.STREAM else 0.75
        room = admits(len(own), len(queued), part * 20, 1)
        room = room and (not steps or admits(sum(own), sum(count for _, count in queued), part * 300, steps))
        try:
            queued.append((push(bounds, op, caller, steps=steps, nbytes=4 * steps), steps))
        except ServerError:
            assert not room
        else:
            assert room
        assert bounds.queued == len(queued)
        assert bounds.steps * 4 == bounds.bytes == 4 * sum(count for _, count in queued)
        assert set(bounds._callers) == {sequence.caller for sequence, _ in queued}


@given(
    st.integers(1, 100),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 30), st.booleans()), max_size=60),
)
def test_a_bound_that_callers_share_counts_who_holds_how_many(limit, work):
    bound, held = SharedBound(limit), dict.fromkeys("abc", 0)
    for caller, size, comes in work:
        if not comes:
            bound.count(caller, -held[caller])
            held[caller] = 0
        else:
            assert bound.admits(caller, size) == admits(held[caller], sum(held.values()), limit, size)
            if bound.admits(caller, size):
                bound.count(caller, size)
                held[caller] += size
        assert bound.used == sum(held.values()) <= limit
        assert {caller: bound.held(caller) for caller in "abc"} == held
        assert set(bound._callers) == {caller for caller, own in held.items() if own}
