"""The training queue: order under one's weights, barriers, batches, turns; and its share of the device."""

import asyncio

import pytest
from helpers.simulated_device import Device, KnownWeights
from hypothesis import given
from hypothesis import strategies as st
from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.sequence import Op
from seqloom_server.engine.core.training_job import Task, TrainingBatch, TrainingCall
from seqloom_server.engine.scheduling.training_queue import TrainingQueue
from seqloom_server.errors import Reason, ServerError


def make_queue(**limits):
    items = dict.fromkeys(Op, 0)
    return TrainingQueue(SchedulerLimits(**limits), items), items


def make_call(weights="w", sequences=1, steps=10, **more):
    return TrainingCall(
        weights, asyncio.Future(loop=LOOP), examples=[None] * sequences, request=None, steps=steps, **more
    )


def make_task(weights="w", **more):
    return Task(weights, asyncio.Future(loop=LOOP), start=lambda: iter(()), **more)


LOOP = asyncio.new_event_loop()


def drain(queue, now=0.0):
    """Runs everything; returns the batches as lists of jobs."""
    batches = []
    while queue.waiting:
        batches.append(queue.next(now).jobs)
        queue.complete()
    return batches


def test_calls_that_wait_together_share_a_batch_and_a_task_stands_between_those_before_and_after_it():
    queue, _ = make_queue()
    first, second, third = make_call(), make_call(), make_call()
    step = make_task()
    for job in (first, second, step, third):
        queue.push(job, 0.0)
    assert drain(queue) == [[first, second], [step], [third]]


def test_a_barrier_is_its_weights_alone():
    queue, _ = make_queue()
    step, behind, other = make_task("a"), make_call("a"), make_call("b")
    for job in (step, behind, other):
        queue.push(job, 0.0)
    assert drain(queue) == [[step], [other], [behind]]


def test_a_batch_that_is_under_way_is_the_one_that_goes_on():
    queue, _ = make_queue()
    first, later = make_call(), make_call()
    queue.push(first, 0.0)
    batch = queue.next(0.0)
    queue.push(later, 1.0)
    assert queue.next(2.0) is batch
    assert batch.jobs == [first]
    queue.complete()
    assert queue.next(3.0).jobs == [later]
    assert later.queue_seconds == 2.0


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.tuples(st.integers(1, 6), st.integers(1, 50))))),
    st.integers(1, 8),
    st.integers(1, 60),
)
def test_everything_runs_once_in_its_weights_order_and_within_the_bounds(work, most_sequences, most_steps):
    queue, items = make_queue(max_batch_sequences=most_sequences, max_batch_steps=most_steps)
    pushed = []
    for weights, size in work:
        job = make_task(weights) if size is None else make_call(weights, *size)
        pushed.append(job)
        queue.push(job, 0.0)
    assert items[Op.TRAIN] == len(pushed)
    ran = drain(queue)
    for weights in "abc":
        assert [job for jobs in ran for job in jobs if job.weights == weights] == [
            job for job in pushed if job.weights == weights
        ]
    for jobs in ran:
        assert len({job.weights for job in jobs}) == 1
        if len(jobs) > 1:
            assert all(isinstance(job, TrainingCall) for job in jobs)
            assert sum(len(job.examples) for job in jobs) <= most_sequences
            assert sum(job.steps for job in jobs) <= most_steps
    assert items[Op.TRAIN] == queue.waiting_steps == queue.waiting_bytes == 0


def test_what_is_cancelled_or_too_late_never_runs():
    queue, items = make_queue()
    late, gone, kept = make_call(deadline=1.0), make_call(), make_call(deadline=9.0)
    for job in (late, gone, kept):
        queue.push(job, 0.0)
    queue.cancel(gone)
    assert queue.next_deadline() == 1.0
    assert queue.expire(2.0) == [late]
    assert drain(queue, 2.0) == [[kept]]
    assert items[Op.TRAIN] == 0
    assert queue.expire(10.0) == []


@pytest.mark.parametrize("bound", [{"max_queue_items": 4}, {"max_queue_bytes": 40}, {"max_queue_steps": 40}])
def test_beyond_the_bounds_calls_are_refused_and_tasks_are_not(bound):
    queue, items = make_queue(**bound)
    for _ in range(2):
        queue.push(make_call(steps=10, nbytes=10), 0.0)
    with pytest.raises(ServerError) as refused:
        queue.push(make_call(steps=10, nbytes=10), 0.0)
    assert refused.value.reason is Reason.OVERLOADED
    assert refused.value.retry_after > 0
    assert items[Op.TRAIN] == 2
    queue.push(make_task(), 0.0)  # others wait for it
    assert [len(jobs) for jobs in drain(queue)] == [2, 1]


class Mixed(Device):
    """The device of known speed, on which training runs, too, in pieces of 20 ms."""

    def run(self):
        work = self.scheduler.next_work(self.now)
        if not isinstance(work, TrainingBatch):
            return self.finish(work)
        self.now += 0.02
        self.used[Op.TRAIN] += 0.02
        self.scheduler.advanced(0.02, self.now, finished=False)
        return work


def test_live_frames_wait_for_one_piece_of_training_at_most():
    device = Mixed()
    device.scheduler.training.push(make_call(), 0.0)
    (stream,) = device.open(KnownWeights(), Op.STREAM)
    for _ in range(20):
        assert isinstance(device.run(), TrainingBatch)
        device.push(stream, 10)
        assert not isinstance(device.run(), TrainingBatch)


def test_training_has_its_share_under_a_flood_of_everything_else():
    device = Mixed()
    weights = KnownWeights()
    device.scheduler.training.push(make_call(), 0.0)
    streams, recordings = device.open(weights, Op.STREAM, 40), device.open(weights, Op.INFER, 40)
    for _ in range(600):
        for sequence in (*streams, *recordings):
            if sequence.waiting_steps < 50:
                device.push(sequence, 50)
        device.run()
    total = sum(device.used.values())
    assert device.used[Op.TRAIN] >= 0.18 * total
    assert device.used[Op.STREAM] >= 0.45 * total
    assert device.used[Op.INFER] >= 0.18 * total
