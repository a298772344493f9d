"""The training work that waits and the batch under way: in order under each weights, by turns among them."""

from collections import OrderedDict, deque
from typing import Any

from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.overload import HALF_A_SECOND, overloaded
from seqloom_server.engine.core.sequence import Op
from seqloom_server.engine.core.training_job import Job, TrainingBatch, TrainingCall
from seqloom_server.engine.scheduling.deadlines import Deadlines

_PART = 0.5  # of the queue's bounds, beside what is there of other work


class TrainingQueue:
    """One batch is on the device at a time, from its first piece to its last. items: counted for Op.TRAIN."""

    def __init__(self, limits: SchedulerLimits, items: dict[Op, int]) -> None:
        self._limits = limits
        self._items = items
        self._queues: OrderedDict[Any, deque[Job]] = OrderedDict()  # by weights, that served longest ago first
        self._deadlines: Deadlines[Job] = Deadlines()
        self._active: TrainingBatch | None = None
        self.waiting_steps = 0
        self.waiting_bytes = 0

    @property
    def waiting(self) -> bool:
        """Whether there is a piece to run."""
        return self._active is not None or bool(self._queues)

    def push(self, job: Job, now: float) -> None:
        """Adds a job behind those of its weights. Raises ServerError OVERLOADED, and then nothing was added."""
        if isinstance(job, TrainingCall):  # tasks are few, and others wait for them
            limits = self._limits
            if (
                self._items[Op.TRAIN] >= _PART * limits.max_queue_items
                or self.waiting_bytes + job.nbytes > max(job.nbytes, _PART * limits.max_queue_bytes)
                or self.waiting_steps + job.steps > max(job.steps, _PART * limits.max_queue_steps)
            ):
                raise overloaded(
                    f"the training queue is full: {self._items[Op.TRAIN]} calls, {self.waiting_steps} steps, "
                    f"{self.waiting_bytes} bytes wait",
                    HALF_A_SECOND,
                )
        job.arrived = now
        self._count(job, 1)
        self._queues.setdefault(job.weights, deque()).append(job)
        self._deadlines.watch(job)

    def cancel(self, job: Job) -> None:
        """Takes a job out that has not begun."""
        queue = self._queues.get(job.weights)
        if queue is not None and job in queue:
            queue.remove(job)
            if not queue:
                del self._queues[job.weights]
            self._leaves(job)

    def cancel_all(self, weights: Any) -> list[Job]:
        """Takes out and returns everything that has not begun under these weights."""
        jobs = list(self._queues.pop(weights, ()))
        for job in jobs:
            self._leaves(job)
        return jobs

    def begun(self) -> list[Job]:
        """What is on the device."""
        return [] if self._active is None else list(self._active.jobs)

    def everything(self) -> list[Job]:
        """What waits and what is on the device."""
        return [*self.begun(), *(job for queue in self._queues.values() for job in queue)]

    def expire(self, now: float) -> list[Job]:
        """Takes out and returns what should have begun by now."""
        expired = self._deadlines.passed(now)
        for job in expired:
            self.cancel(job)
        return expired

    def next_deadline(self) -> float | None:
        """When expire() has something to do next."""
        return self._deadlines.next()

    def next(self, now: float) -> TrainingBatch:
        """Returns the batch of which a piece is to run; there must be one waiting."""
        if self._active is None:
            weights = next(iter(self._queues))
            self._queues.move_to_end(weights)
            self._active = TrainingBatch(weights, self._take(weights, now))
        return self._active

    def complete(self) -> None:
        """The batch has run to its end."""
        self._active = None

    def _take(self, weights: Any, now: float) -> list[Job]:
        """A task alone, or the calls that stand before the next task, as many as a batch may have."""
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
            self._leaves(job)
            job.queue_seconds = now - job.arrived
            jobs.append(job)
            if not isinstance(job, TrainingCall):
                break
        if not queue:
            del self._queues[weights]
        return jobs

    def _leaves(self, job: Job) -> None:
        self._count(job, -1)
        self._deadlines.forget(job)

    def _count(self, job: Job, sign: int) -> None:
        self._items[Op.TRAIN] += sign
        if isinstance(job, TrainingCall):
            self.waiting_steps += sign * job.steps
            self.waiting_bytes += sign * job.nbytes
