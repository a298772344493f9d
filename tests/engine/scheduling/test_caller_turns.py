"""Callers take turns at training, whatever each of them queues; the order within a run never changes."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.sequence import Op
from seqloom_server.engine.core.training_job import Task, TrainingCall
from seqloom_server.engine.scheduling.training_queue import TrainingQueue

LOOP = asyncio.new_event_loop()
SEQUENCES, STEPS = 6, 100
CALLERS = st.sampled_from(["ann", "ben", "dan"])


def make_queue(sequences=SEQUENCES, steps=STEPS):
    items = dict.fromkeys(Op, 0)
    return TrainingQueue(SchedulerLimits(max_batch_sequences=sequences, max_batch_steps=steps), items), items


def make_call(caller, weights="model", steps=10, sequences=1, **more):
    return TrainingCall(
        weights,
        asyncio.Future(loop=LOOP),
        caller=caller,
        examples=[None] * sequences,
        request=None,
        steps=steps,
        **more,
    )


def make_task(caller, weights, **more):
    return Task(weights, asyncio.Future(loop=LOOP), caller=caller, start=lambda: iter(()), **more)


def run_batch(queue, now=0.0):
    jobs = queue.next(now).jobs
    queue.complete()
    return jobs


class Turns(RuleBasedStateMachine):
    """Callers with gradient calls under shared weights, and calls and steps of runs, beside a plain list of it all."""

    def __init__(self):
        super().__init__()
        self.queue, self.items = make_queue()
        self.queued = []
        self.waited = {}  # by caller: the batches since it was served last, or came

    def push(self, job):
        self.queue.push(job, 0.0)
        self.waited.setdefault(job.caller, 0)
        self.queued.append(job)

    @rule(caller=CALLERS, weights=st.sampled_from("xy"), steps=st.integers(1, 120), sequences=st.integers(1, 8))
    def call(self, caller, weights, steps, sequences):
        self.push(make_call(caller, weights, steps, sequences))

    @rule(caller=CALLERS, run=st.integers(1, 3), size=st.none() | st.tuples(st.integers(1, 60), st.integers(1, 4)))
    def call_or_step_of_a_run(self, caller, run, size):
        weights, call = (caller, run), ("client", len(self.queued))
        self.push(
            make_task(caller, weights, call=call) if size is None else make_call(caller, weights, *size, call=call)
        )

    @rule(run=st.integers(1, 3), caller=CALLERS)
    def snapshot(self, run, caller):
        self.push(make_task(caller, (caller, run)))

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def cancel(self, data):
        job = data.draw(st.sampled_from(self.queued))
        self.queue.cancel(job)
        self.remove(job)

    @precondition(lambda self: self.queued)
    @rule()
    def batch(self):
        jobs = run_batch(self.queue)
        weights = jobs[0].weights
        assert all(job.weights == weights for job in jobs)
        ordered = isinstance(weights, tuple)
        for caller in {job.caller for job in jobs}:
            waiting = [job for job in self.queued if job.weights == weights and (ordered or job.caller == caller)]
            mine = [job for job in jobs if ordered or job.caller == caller]
            assert waiting[: len(mine)] == mine, "in the order in which they came"
        if len(jobs) > 1:
            assert all(isinstance(job, TrainingCall) for job in jobs)
            assert sum(len(job.examples) for job in jobs) <= SEQUENCES
            assert sum(job.steps for job in jobs) <= STEPS
        for caller in self.waited:
            self.waited[caller] += 1
        for job in jobs:
            self.remove(job)
            if job.caller in self.waited:
                self.waited[job.caller] = 0

    def remove(self, job):
        self.queued.remove(job)
        if all(other.caller != job.caller for other in self.queued):
            del self.waited[job.caller]

    @invariant()
    def nobody_waits_for_more_batches_than_there_are_callers(self):
        assert all(waited < 3 for waited in self.waited.values()), self.waited

    @invariant()
    def what_is_queued_is_counted(self):
        calls = [job for job in self.queued if isinstance(job, TrainingCall)]
        assert self.items[Op.TRAIN] == len(self.queued)
        assert self.queue.waiting_steps == sum(job.steps for job in calls)
        assert self.queue.waiting == bool(self.queued)

    def teardown(self):
        while self.queued:
            self.batch()
        assert not self.queue.waiting


TestTurns = Turns.TestCase
TestTurns.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("steps", [5, STEPS], ids=["small calls", "calls that fill a batch"])
def test_a_flood_delays_another_caller_by_two_batches_at_most(steps):
    queue, _ = make_queue()
    for _ in range(300):
        queue.push(make_call("flood", steps=steps), 0.0)
    for _ in range(20):
        queue.next(0.0)
        call = make_call("modest")
        queue.push(call, 0.0)
        queue.complete()  # what was under way when it came
        assert any(call in run_batch(queue) for _ in range(2))


def test_sixty_runs_are_one_caller():
    queue, _ = make_queue()
    for run in range(60):
        for _ in range(3):
            queue.push(make_task("flood", run), 0.0)
    for _ in range(30):
        queue.push(make_call("modest", "its own", steps=STEPS), 0.0)
    callers = [run_batch(queue)[0].caller for _ in range(60)]
    assert callers.count("modest") == 30
    runs = [run_batch(queue)[0].weights for _ in range(60)]
    assert sorted(runs) == list(range(60)), "and the runs take turns"


def test_callers_of_the_same_weights_get_as_many_steps_whatever_the_size_of_their_calls():
    queue, _ = make_queue(sequences=256, steps=1024)
    for _ in range(60):
        queue.push(make_call("long", steps=1000), 0.0)
    for _ in range(6000):
        queue.push(make_call("short", steps=10), 0.0)
    had = {"long": 0, "short": 0}
    for _ in range(40):
        for job in run_batch(queue):
            had[job.caller] += job.steps
        assert abs(had["long"] - had["short"]) <= 2048


def test_many_callers_of_one_call_each_are_served_in_the_order_in_which_they_came():
    queue, _ = make_queue(sequences=256, steps=1 << 20)
    calls = [make_call(str(number)) for number in range(8000)]
    for call in calls:
        queue.push(call, 0.0)
    assert [job for _ in range(32) for job in run_batch(queue)] == calls[: 32 * 256]


@given(st.lists(st.tuples(CALLERS, st.booleans(), st.integers(1, 60)), min_size=1, max_size=40))
def test_a_run_that_many_callers_share_keeps_its_order_and_its_barriers(work):
    queue, _ = make_queue()
    pushed = []
    for number, (caller, is_step, steps) in enumerate(work):
        call = ("client", number)
        job = make_task(caller, "run", call=call) if is_step else make_call(caller, "run", steps, call=call)
        pushed.append(job)
        queue.push(job, 0.0)
        queue.push(make_call(caller, "model", steps), 0.0)
    ran = []
    while queue.waiting:
        ran += [job for job in run_batch(queue) if job.weights == "run"]
    assert ran == pushed
