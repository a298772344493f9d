"""The queue of training jobs and the batch on the device: what is let in, what is too late, and what runs next."""

import math

from seqloom_server.engine.admission.caller_share import admits, is_share_full
from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.overload import HALF_A_SECOND, overloaded
from seqloom_server.engine.core.sequence import Op
from seqloom_server.engine.core.training_job import Job, TrainingBatch, TrainingCall
from seqloom_server.engine.scheduling.caller_turns import CallerTurns
from seqloom_server.engine.scheduling.deadlines import Deadlines
from seqloom_server.engine.scheduling.training_pace import Load, TrainingPace, kind_of, steps_of
from seqloom_server.errors import Overload

_PART = 0.5  # of the queue's bounds, in addition to the sequences in it
_LEAST_SECONDS = 0.05  # after which a call that came too late may be tried again


class TrainingQueue:
    """Training jobs; one batch is on the device at a time, from its first piece to its last. Time is an argument.

    items: the counts of queued items, of which this keeps that of Op.TRAIN.
    """

    def __init__(self, limits: SchedulerLimits, items: dict[Op, int]) -> None:
        self._limits = limits
        self._items = items
        self._turns = CallerTurns()
        self._deadlines: Deadlines[Job] = Deadlines()
        self._pace = TrainingPace(limits.max_batch_sequences, limits.max_batch_steps)
        self._load = Load()
        self._loads: dict[str, Load] = {}  # by caller
        self._active: TrainingBatch | None = None

    @property
    def waiting(self) -> bool:
        """Whether there is a piece to run."""
        return self._active is not None or bool(self._turns)

    @property
    def waiting_steps(self) -> int:
        """The steps of the queued calls."""
        return self._load.steps

    @property
    def waiting_bytes(self) -> int:
        """The bytes of the queued calls."""
        return self._load.nbytes

    def push(self, job: Job, now: float) -> None:
        """Adds a job. Raises ServerError OVERLOADED, and then adds nothing."""
        idle = not self.waiting
        if isinstance(job, TrainingCall):  # tasks are few, and calls wait for them
            self._check_bounds(job)
            if not idle:
                self._check_in_time(job, now)
        job.arrived = now
        self._count(job, 1)
        self._turns.add(job)
        # A call on a run has used up its number, so it is dropped no sooner than it must be. Nor is a call that found
        # nothing before it, or what is expected wrongly could never be put right.
        early = job.call is None and not idle
        self._deadlines.watch(job, self._pace.seconds(kind_of(job), steps_of(job)) if early else 0.0)

    def cancel(self, job: Job) -> None:
        """Removes a job, if it has not begun."""
        if self._turns.remove(job):
            self._remove(job)

    def begun(self) -> list[Job]:
        """Returns the jobs on the device."""
        return [] if self._active is None else list(self._active.jobs)

    def expire(self, now: float) -> list[Job]:
        """Removes and returns the jobs that have not begun and cannot meet their deadlines any more."""
        expired = self._deadlines.passed(now)
        for job in expired:
            self.cancel(job)
        return expired

    def next_deadline(self) -> float | None:
        """Returns when a job in the queue must have begun, the earliest, or None."""
        return self._deadlines.next()

    def next(self, now: float) -> TrainingBatch:
        """Returns the batch of which to run a piece; a job must be waiting."""
        if self._active is None:
            jobs = self._turns.take(_Room(self._limits, self._pace, now).joins, self._limits.max_batch_sequences)
            for job in jobs:
                self._remove(job)
                job.queue_seconds = now - job.arrived
            self._active = TrainingBatch(jobs[0].weights, jobs, began=now)
        return self._active

    def observe(self, now: float) -> None:
        """Learns how long the batch on the device took; called at its end, before complete(), unless it failed."""
        batch = self._active
        if batch is not None:
            self._pace.observe(kind_of(batch.jobs[0]), sum(map(steps_of, batch.jobs)), now - batch.began)

    def complete(self) -> None:
        """Completes the batch on the device."""
        self._active = None

    def _check_bounds(self, job: TrainingCall) -> None:
        limits, load, own = self._limits, self._load, self._loads.get(job.caller, Load())
        items = math.ceil(_PART * limits.max_queue_items)
        for unit, mine, used, limit, added in (
            ("calls", own.items, load.items, items, 1),
            ("steps", own.steps, load.steps, max(job.steps, _PART * limits.max_queue_steps), job.steps),
            ("bytes", own.nbytes, load.nbytes, max(job.nbytes, _PART * limits.max_queue_bytes), job.nbytes),
        ):
            if not admits(mine, used, limit, added):
                full = "the training queue is full"
                if is_share_full(mine, used, limit, added):
                    full = f"this caller's share of the training queue is full, with {mine} {unit}"
                raise overloaded(f"{full}: {used} of {limit:.0f} {unit} are queued", HALF_A_SECOND, Overload.QUEUE_FULL)

    def _check_in_time(self, job: TrainingCall, now: float) -> None:
        """Raises OVERLOADED if the call is expected to end after its deadline, unless that has passed already."""
        if job.deadline is None or job.deadline <= now:
            return
        pace, active, own = self._pace, self._active, self._loads.get(job.caller)
        # others are not served more than this caller is
        callers = self._turns.callers + (own is None)
        seconds = min(pace.seconds_of(self._load), pace.seconds_of(own) * callers if own is not None else 0.0)
        seconds += pace.seconds(kind_of(job), job.steps)
        if active is not None:
            expected = pace.seconds(kind_of(active.jobs[0]), sum(map(steps_of, active.jobs)))
            seconds += max(0.0, active.began + expected - now)
        late = now + seconds - job.deadline
        if late > 0:
            raise overloaded(
                f"the call would end {late:.3f} s after its deadline: {self._load.items} calls are queued",
                max(late, _LEAST_SECONDS),
                Overload.TOO_LATE,
            )

    def _remove(self, job: Job) -> None:
        self._count(job, -1)
        self._deadlines.forget(job)

    def _count(self, job: Job, sign: int) -> None:
        self._items[Op.TRAIN] += sign
        self._load.count(job, sign)
        own = self._loads.setdefault(job.caller, Load())
        own.count(job, sign)
        if not own.items:
            del self._loads[job.caller]


class _Room:
    """What a batch that begins now still takes: within its bounds, and so that its members meet their deadlines."""

    def __init__(self, limits: SchedulerLimits, pace: TrainingPace, now: float) -> None:
        self._limits = limits
        self._pace = pace
        self._now = now
        self._jobs = self._sequences = self._steps = 0
        self._deadline = float("inf")  # the earliest

    def joins(self, job: Job) -> bool:
        """Returns whether a job joins the batch, as the first one always does, and counts it then."""
        sequences = self._sequences + (len(job.examples) if isinstance(job, TrainingCall) else 1)
        steps = self._steps + steps_of(job)
        deadline = self._deadline
        if job.deadline is not None and job.call is None:
            deadline = min(deadline, job.deadline)
        if self._jobs and (
            sequences > self._limits.max_batch_sequences
            or steps > self._limits.max_batch_steps
            or self._now + self._pace.seconds(kind_of(job), steps) > deadline
        ):
            return False
        self._jobs, self._sequences, self._steps, self._deadline = self._jobs + 1, sequences, steps, deadline
        return True
