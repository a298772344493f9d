"""The open training jobs: passes each to the device thread, and ends each exactly once."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Set

from seqloom_server.engine.core.sequence import Op
from seqloom_server.engine.core.training_job import Job, TrainingCall
from seqloom_server.engine.engine_metrics import EngineMetrics
from seqloom_server.engine.scheduling.training_queue import TrainingQueue
from seqloom_server.errors import ServerError


class OpenJobs:
    """The open jobs of one engine, on its event loop. ready: guards `queue`, and wakes the device thread.

    ended: called after each job's end.
    """

    def __init__(
        self, queue: TrainingQueue, ready: threading.Condition, metrics: EngineMetrics, ended: Callable[[], None]
    ) -> None:
        self._queue = queue
        self._ready = ready
        self._metrics = metrics
        self._ended = ended
        self._open: dict[Job, None] = {}
        self._waking = False

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._open))

    def add(self, job: Job) -> None:
        """Queues a job. Raises ServerError OVERLOADED."""
        with self._ready:
            try:
                self._queue.push(job, time.monotonic())
            except ServerError as error:
                self._metrics.rejected(error)
                raise
        self._open[job] = None
        if not self._waking:  # later, so that calls that have arrived together share a batch
            self._waking = True
            asyncio.get_running_loop().call_soon(self._wake)

    def begun(self) -> Set[Job]:
        """Returns the jobs on the device."""
        with self._ready:
            return set(self._queue.begun())

    def abandon(self, jobs: Iterable[Job], error: ServerError | None = None) -> None:
        """Ends jobs, with the error or cancelled, and removes those that have not begun from the queue."""
        ended = [job for job in jobs if job in self._open]
        with self._ready:
            for job in ended:
                self._queue.cancel(job)
        for job in ended:
            self.end(job, error)
            if error is None:
                self._metrics.cancelled("running" if job.queue_seconds else "queued")

    def end(self, job: Job, outcome: object) -> None:
        """Ends a job, unless it has ended: with a result, a ServerError, or cancelled if `outcome` is None."""
        awaited = job in self._open and not job.outcome.done()
        if not awaited and isinstance(job, TrainingCall) and not isinstance(outcome, ServerError | None):
            self._metrics.wasted(Op.TRAIN, job.weights.model, job.steps)
        if job not in self._open:
            return
        del self._open[job]
        if not job.outcome.done():
            if outcome is None:
                job.outcome.cancel()
            elif isinstance(outcome, ServerError):
                job.outcome.set_exception(outcome)
            else:
                job.outcome.set_result(outcome)
        self._ended()

    def _wake(self) -> None:
        self._waking = False
        with self._ready:
            self._ready.notify()
