"""What training lets in: within each caller's share of the bounds, and what is expected to end before its deadline."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.sequence import Op
from seqloom_server.engine.core.training_job import Task, TrainingCall
from seqloom_server.engine.scheduling.training_pace import TrainingPace
from seqloom_server.engine.scheduling.training_queue import TrainingQueue
from seqloom_server.errors import Overload, Reason, ServerError

LOOP = asyncio.new_event_loop()
CALLS = ("model", True)


def make_queue(**limits):
    return TrainingQueue(SchedulerLimits(**limits), dict.fromkeys(Op, 0))


def make_call(caller="ann", steps=10, weights="model", **more):
    outcome = asyncio.Future(loop=LOOP)
    return TrainingCall(weights, outcome, caller=caller, examples=[None], request=None, steps=steps, **more)


def run(queue, begin, seconds):
    """Runs a batch from `begin` on; returns its jobs."""
    jobs = queue.next(begin).jobs
    queue.observe(begin + seconds)
    queue.complete()
    return jobs


def learned(seconds_per_step=0.01, **limits):
    """A queue that has seen batches take so long."""
    queue = make_queue(**limits)
    for steps in (10, 1000) * 10:
        queue.push(make_call(steps=steps), 0.0)
        run(queue, 0.0, seconds_per_step * steps)
    return queue


def refusal(queue, job, now=0.0):
    with pytest.raises(ServerError) as refused:
        queue.push(job, now)
    assert refused.value.reason is Reason.OVERLOADED
    return refused.value


@pytest.mark.parametrize("bound", [{"max_queue_items": 40}, {"max_queue_bytes": 400}, {"max_queue_steps": 400}])
def test_a_caller_gets_nine_tenths_of_each_bound_and_others_the_rest(bound):
    queue = make_queue(**bound)
    for _ in range(18):
        queue.push(make_call(nbytes=10), 0.0)
    share = refusal(queue, make_call(nbytes=10))
    assert share.cause is Overload.QUEUE_FULL
    assert "this caller's share of the training queue is full" in str(share)
    queue.push(make_call("ben", nbytes=10), 0.0)
    queue.push(make_call("ben", nbytes=10), 0.0)
    for caller in ("ann", "ben", "dan"):
        full = refusal(queue, make_call(caller, nbytes=10))
        assert str(full).startswith("the training queue is full")
    queue.push(Task("run", asyncio.Future(loop=LOOP), start=lambda: iter(())), 0.0)  # others wait for it
    assert len(run(queue, 0.0, 1.0)) == 20
    queue.push(make_call(nbytes=10), 0.0)


@pytest.mark.parametrize("bound", [{"max_queue_bytes": 20}, {"max_queue_steps": 20}])
def test_what_no_bound_would_hold_is_let_in_where_nothing_waits(bound):
    queue = make_queue(**bound)
    queue.push(make_call(steps=100, nbytes=100), 0.0)
    refusal(queue, make_call("ben", steps=1, nbytes=1))


def test_what_would_end_after_its_deadline_is_refused_and_told_when_to_come_again():
    queue = learned()
    queue.push(make_call(steps=100), 0.0)  # a second
    late = refusal(queue, make_call(steps=100, deadline=1.5))
    assert late.cause is Overload.TOO_LATE
    assert late.retry_after == pytest.approx(0.5, rel=0.25)
    end = 1.5 + late.retry_after
    assert refusal(queue, make_call(steps=100, deadline=end - 1e-3)).retry_after == 0.05
    queue.push(make_call(steps=100, deadline=end + 1e-3), 0.0)
    queue.push(make_call(steps=10**5), 0.0)  # no deadline
    assert sum(len(run(queue, 0.0, 1.0)) for _ in range(2)) == 3


def test_who_comes_when_it_was_told_to_is_let_in():
    queue = learned()
    queue.push(make_call(steps=100), 0.0)
    late = refusal(queue, make_call(steps=100, deadline=1.5))
    queue.next(0.0)
    now = late.retry_after
    queue.push(make_call(steps=100, deadline=now + 1.5), now)


def test_what_is_on_the_device_counts_with_what_is_left_of_it():
    queue = learned()
    queue.push(make_call(steps=100), 0.0)
    queue.next(0.0)
    refusal(queue, make_call(steps=100, deadline=1.5))
    queue.push(make_call(steps=100, deadline=2.4), 0.8)


def test_a_caller_waits_for_no_more_of_others_than_it_has_itself():
    queue = learned()
    queue.next_deadline()
    for _ in range(100):
        queue.push(make_call("flood", steps=100), 0.0)
    queue.push(make_call("modest", steps=100, deadline=1.1), 0.0)
    queue.push(make_call("modest", steps=100, deadline=3.3), 0.0)  # behind its own, and as much of the flood
    refusal(queue, make_call("modest", steps=100, deadline=3.3))
    refusal(queue, make_call("flood", steps=100, deadline=4.0))


@given(st.floats(1e-6, 1e6), st.integers(1, 10**6))
def test_nobody_is_refused_where_nothing_waits_whatever_was_learned(seconds, steps):
    queue = make_queue()
    queue.push(make_call(steps=steps), 0.0)
    run(queue, 0.0, seconds)
    call = make_call(steps=steps, deadline=1e-3)
    queue.push(call, 0.0)
    assert queue.expire(0.5e-3) == []
    assert run(queue, 0.5e-3, 1e-4) == [call]


def test_what_cannot_be_in_time_any_more_is_dropped_before_it_begins_and_calls_of_runs_at_their_deadlines():
    queue = learned()
    queue.push(make_call(), 0.0)
    late, of_a_run = (
        make_call(steps=100, deadline=2.0),
        make_call(steps=100, deadline=2.5, call=("ann", 1)),
    )
    queue.push(late, 0.0)
    queue.push(of_a_run, 0.0)
    assert queue.expire(0.9) == []
    assert queue.next_deadline() == pytest.approx(1.0, abs=0.1)
    assert queue.expire(1.1) == [late]
    assert queue.expire(2.4) == []
    assert queue.expire(2.5) == [of_a_run]


def test_a_batch_grows_no_further_than_its_members_deadlines_allow():
    queue = learned()
    for _ in range(5):
        queue.push(make_call(steps=50, deadline=30.0), 0.0)
    urgent = make_call("ben", steps=50, deadline=1.7)
    queue.push(urgent, 0.0)
    jobs = run(queue, 0.0, 1.5)
    assert urgent in jobs
    assert len(jobs) == 3, "half a second each"


def test_a_deadline_that_has_passed_when_the_call_comes_is_no_matter_of_load():
    queue = learned()
    queue.push(make_call(), 1.0)
    call = make_call(deadline=0.5)
    queue.push(call, 1.0)
    assert queue.expire(1.0) == [call]


@given(st.floats(1e-4, 1e-2), st.floats(1e-6, 1e-4), st.floats(0.05, 20))
def test_the_pace_is_learned_and_learned_again_within_a_few_batches(per_batch, per_step, change):
    pace = TrainingPace(256, 32768)
    sizes = (10, 5000, 300, 20_000) * 12
    for steps in sizes:
        pace.observe(CALLS, steps, per_batch + per_step * steps)
    for steps in sizes[:4]:
        assert 0.6 < pace.seconds(CALLS, steps) / (per_batch + per_step * steps) < 1.6
    for steps in sizes[:8]:
        pace.observe(CALLS, steps, change * (per_batch + per_step * steps))
    for steps in sizes[:4]:
        assert 0.3 < pace.seconds(CALLS, steps) / change / (per_batch + per_step * steps) < 3


def test_one_freak_is_forgotten_within_a_few_batches():
    pace = TrainingPace(256, 32768)
    for seconds in [0.1] * 5 + [100.0] + [0.1] * 4:
        pace.observe(CALLS, 100, seconds)
    assert pace.seconds(CALLS, 100) == pytest.approx(0.1, rel=0.1)


def test_tasks_and_models_have_a_pace_of_their_own():
    pace = TrainingPace(256, 32768)
    pace.observe(CALLS, 100, 1.0)
    pace.observe(("model", False), 0, 5.0)
    assert pace.seconds(("model", False), 0) == 5.0
    assert pace.seconds(("other", True), 100) == 0.0
    assert pace.seconds(CALLS, 100) == 1.0
