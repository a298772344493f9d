"""The queue of training jobs and the batch on the device: in order under the same weights, which take turns."""

from collections import OrderedDict, deque

from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.overload import HALF_A_SECOND, overloaded
from seqloom_server.engine.core.sequence import Op
from seqloom_server.engine.core.training_job import Job, TrainingBatch, TrainingCall
from seqloom_server.engine.scheduling.deadlines import Deadlines

_PART = 0.5  # of the queue's bounds, in addition to the sequences in it


class TrainingQueue:
    """Training jobs; one batch is on the device at a time, from its first piece to its last.

    items: the counts of queued items, of which this keeps that of Op.TRAIN.
    """

    def __init__(self, limits: SchedulerLimits, items: dict[Op, int]) -> None:
        self._limits = limits
        self._items = items
        self._queues: OrderedDict[object, deque[Job]] = OrderedDict()  # by weights, least recently served first
        self._deadlines: Deadlines[Job] = Deadlines()
        self._active: TrainingBatch | None = None
        self.waiting_steps = 0
        self.waiting_bytes = 0

    @property
    def waiting(self) -> bool:
        """Whether there is a piece to run."""
        return self._active is not None or bool(self._queues)

    def push(self, job: Job, now: float) -> None:
        """Adds a job. Raises ServerError OVERLOADED, and then adds nothing."""
        if isinstance(job, TrainingCall):  # tasks are few, and calls wait for them
            limits = self._limits
            if (
                self._items[Op.TRAIN] >= _PART * limits.max_queue_items
                or self.waiting_bytes + job.nbytes > max(job.nbytes, _PART * limits.max_queue_bytes)
                or self.waiting_steps + job.steps > max(job.steps, _PART * limits.max_queue_steps)
            ):
                raise overloaded(
                    f"the training queue is full: {self._items[Op.TRAIN]} calls, {self.waiting_steps} steps, "
                    f"{self.waiting_bytes} bytes",
                    HALF_A_SECOND,
                )
        job.arrived = now
        self._count(job, 1)
        self._queues.setdefault(job.weights, deque()).append(job)
        self._deadlines.watch(job)

    def cancel(self, job: Job) -> None:
        """Removes a job, if it has not begun."""
        queue = self._queues.get(job.weights)
        if queue is not None and job in queue:
            queue.remove(job)
            if not queue:
                del self._queues[job.weights]
            self._remove(job)

    def begun(self) -> list[Job]:
        """Returns the jobs on the device."""
        return [] if self._active is None else list(self._active.jobs)

    def expire(self, now: float) -> list[Job]:
        """Removes and returns the jobs whose deadline has passed before they began."""
        expired = self._deadlines.passed(now)
        for job in expired:
            self.cancel(job)
        return expired

    def next_deadline(self) -> float | None:
        """Returns the earliest deadline in the queue, or None."""
        return self._deadlines.next()

    def next(self, now: float) -> TrainingBatch:
        """Returns the batch of which to run a piece; a job must be waiting."""
        if self._active is None:
            weights = next(iter(self._queues))
            self._queues.move_to_end(weights)
            self._active = TrainingBatch(weights, self._take(weights, now))
        return self._active

    def complete(self) -> None:
        """Completes the batch on the device."""
        self._active = None

    def _take(self, weights: object, now: float) -> list[Job]:
        """Removes and returns one task, or the calls before the next task, as many as a batch may have."""
        queue = self._queues[weights]
        jobs: list[Job] = []
        sequences = steps = 0
        while queue:
            job = queue[0]
            if isinstance(job, TrainingCall):
                sequences += len(job.examples)
                steps += job.steps
                full = sequences > self._limits.max_batch_sequences or steps > self._limits.max_batch_steps
            else:
                full = True
            if jobs and full:
                break
            queue.popleft()
            self._remove(job)
            job.queue_seconds = now - job.arrived
            jobs.append(job)
            if not isinstance(job, TrainingCall):
                break
        if not queue:
            del self._queues[weights]
        return jobs

    def _remove(self, job: Job) -> None:
        self._count(job, -1)
        self._deadlines.forget(job)

    def _count(self, job: Job, sign: int) -> None:
        self._items[Op.TRAIN] += sign
        if isinstance(job, TrainingCall):
            self.waiting_steps += sign * job.steps
            self.waiting_bytes += sign * job.nbytes
