"""The device thread: takes the next slice as soon as it is free, runs it, and hands its outcomes back in one call.

A GPU computes on its own: there the next slice is launched while the last one is under way, and how long work took is
told by the device's clock.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from seqloom_server.engine.core.overload import memory_exhausted
from seqloom_server.engine.core.sequence import Member, Sequence, Slice, SliceResult
from seqloom_server.engine.core.training_job import Job, Program, TrainingBatch, batch_failed
from seqloom_server.engine.device import slice_parts, slice_runner
from seqloom_server.engine.device.slice_in_flight import SliceInFlight
from seqloom_server.engine.device.transfers import InPlace, Staging
from seqloom_server.engine.models.served_weights import ServedWeights
from seqloom_server.engine.scheduling.deadlines import deadline_passed
from seqloom_server.engine.scheduling.scheduler import Scheduler
from seqloom_server.errors import ServerError
from seqloom_server.memory import is_memory_short
from seqloom_server.nn.cpu_threads import set_threads
from seqloom_server.nn.forward import precision

log = logging.getLogger(__name__)

_FAILURES_IN_A_ROW = 5  # then the device thread dies
# A longer slice is not followed by one launched ahead: live frames would wait for two slices instead of one, which is
# worth more than the gap between the two.
_LAUNCHED_AHEAD = 0.005  # seconds, as expected
_ENOUGH = 0.5  # of a slice's steps must wait, or a successor launched ahead would be small

Results = list[tuple[Member, SliceResult]]
TrainingResults = list[tuple[Job, Any]]  # or the ServerError of that job


class Outcomes(Protocol):
    """Receives outcomes, on the event loop."""

    def ran(self, results: Results) -> None: ...

    def failed(self, sequences: list[Sequence]) -> None: ...

    def exhausted(self, sequences: list[Sequence]) -> None: ...

    def expired(self, sequences: list[Sequence]) -> None: ...

    def trained(self, results: TrainingResults) -> None: ...

    def died(self, error: BaseException) -> None: ...


class DeviceMetrics(Protocol):
    """Counts what the device does, on the device thread. busy: with a slice, or with a piece of training."""

    def busy(self, seconds: float) -> None: ...

    def ran(self, slice_: Slice, seconds: float) -> None: ...

    def trained(self, batch: TrainingBatch) -> None: ...


class DeviceThread:
    """The one thread that runs networks.

    ready: the lock around `scheduler`, notified when there is something to do. threads: torch's; 0 chooses by network.
    start_program: makes the program of a training batch. staging: the copies between the device and the CPU.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        ready: threading.Condition,
        metrics: DeviceMetrics,
        outcomes: Outcomes,
        start_program: Callable[[TrainingBatch], Program],
        *,
        threads: int = 0,
        poison: bool = False,
        staging: Staging | None = None,
    ) -> None:
        self._staging = staging or InPlace()
        self._flight: SliceInFlight | None = None  # launched, not finished
        self._start_program = start_program
        self._scheduler = scheduler
        self._ready = ready
        self._metrics = metrics
        self._outcomes = outcomes
        self._threads = threads
        self._in_use = 0
        self._poison = poison
        self._stopping = False
        self._failures = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._serve, name="seqloom-device", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts; outcomes go to `loop`."""
        self._loop = loop
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Stops after the slice in flight; waits for that at most `timeout` seconds."""
        with self._ready:
            self._stopping = True
            self._ready.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _serve(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            log.critical("the device thread has died", exc_info=True)
            self._hand_back(self._outcomes.died, error)

    def _turn(self) -> bool:
        """Waits for work and does it; returns False when the thread is to stop.

        Only this call refers to the work, so that an idle thread keeps no weights and no outputs alive.
        """
        before, self._flight = self._flight, None
        if before is not None:
            self._await_turn_to_launch(before)
        expired: list[Sequence] = []
        late: list[Job] = []
        work: Slice | TrainingBatch | None = None
        with self._ready:
            while not self._stopping:
                now = time.monotonic()
                expired = self._scheduler.expire(now)
                late = self._scheduler.training.expire(now)
                work = self._scheduler.next_work(now)
                expired += self._scheduler.expire(now)  # what it found to be too late
                if expired or late or work is not None or before is not None:
                    break
                deadline = self._scheduler.next_deadline()
                # a whole sequence whose frames never come has a deadline, too
                self._ready.wait(None if deadline is None else min(deadline - now, threading.TIMEOUT_MAX))
            stopping = self._stopping
        if expired:
            self._hand_back(self._outcomes.expired, expired)
        if late:
            error = deadline_passed()
            self._hand_back(self._outcomes.trained, [(job, error) for job in late])
        if isinstance(work, TrainingBatch):
            self._advance(work, before)
        elif work is not None:
            self._run(work, before)
        elif before is not None:
            self._finish(before, None)
        return not stopping

    def _run(self, slice_: Slice, before: SliceInFlight | None) -> None:
        """Launches a slice, then finishes the one before it; on the CPU it finishes the slice at once."""
        assert isinstance(slice_.weights, ServedWeights)
        self._set_threads(self._threads or slice_.weights.threads)
        start = time.monotonic()
        flight: SliceInFlight | None = None
        try:
            flight = self._launch(slice_)
        except Exception as error:
            if before is not None:
                self._finish(before, None)
            if slice_.written or not is_memory_short(error):
                self._failed(slice_, time.monotonic() - start, error)
                return
            log.warning("no memory for a slice of %d sequences, %d steps", len(slice_.members), slice_.cells)
        if flight is None:  # not in the handler, as the error holds what was computed
            self._run_parts(slice_, start)
        elif self._staging.apart:
            self._flight = flight
            if before is not None:
                self._finish(before, None)
        else:
            self._finish(flight, start)

    def _launch(self, slice_: Slice) -> SliceInFlight:
        return slice_runner.launch(slice_, self._staging, poison=self._poison)

    def _run_parts(self, slice_: Slice, start: float) -> None:
        """Runs a slice that found no memory in parts, and hands back what came of it."""
        done = slice_parts.run(slice_, self._launch, self._hold_state)
        now = time.monotonic()
        with self._ready:
            self._scheduler.complete(slice_, now - start, now, lost=done.lost)
        self._hand_back(self._outcomes.ran, done.results)
        if done.exhausted:
            log.error("no memory for %d sequences, each alone", len(done.exhausted))
            self._hand_back(self._outcomes.exhausted, done.exhausted)
        self._metrics.busy(now - start)
        if done.failed:
            self._hand_back(self._outcomes.failed, done.failed)
            self._count_failure()
        elif done.results:
            self._failures = 0
        if not done.lost:
            self._metrics.ran(slice_, now - start)

    def _hold_state(self, sequence: Sequence) -> None:
        with self._ready:
            self._scheduler.hold_state(sequence)

    def _await_turn_to_launch(self, flight: SliceInFlight) -> None:
        """Waits until the next slice may be launched behind this one: at once where this one is short and enough waits,
        else when it has computed, since the next one may grow until then."""
        slice_ = flight.slice_
        expected = slice_.weights.cost.seconds(slice_.steps, slice_.cells)
        if expected > _LAUNCHED_AHEAD or self._scheduler.waiting_steps < _ENOUGH * slice_.cells:
            with contextlib.suppress(Exception):  # finish() raises it again
                flight.computed()

    def _finish(self, flight: SliceInFlight, start: float | None) -> None:
        """Waits for a slice's results and hands them back. A failure ends its members only, until there are too many
        in a row. start: when it began; used where the device does not measure how long it took."""
        slice_, begun = flight.slice_, time.monotonic() if start is None else start
        try:
            results = flight.finish()
        except Exception as error:
            self._failed(slice_, time.monotonic() - begun, error)
            return
        now = time.monotonic()
        seconds = now - begun if flight.seconds is None else flight.seconds
        with self._ready:
            self._scheduler.complete(slice_, seconds, now)
        self._failures = 0
        self._hand_back(self._outcomes.ran, results)
        # after the callers have their outputs
        slice_.weights.cost.observe(slice_.steps, slice_.cells, seconds)
        self._metrics.busy(seconds)
        self._metrics.ran(slice_, seconds)

    def _failed(self, slice_: Slice, seconds: float, error: Exception) -> None:
        """Ends the members of a slice that failed. Raises RuntimeError when too many have failed in a row."""
        now = time.monotonic()
        with self._ready:
            self._scheduler.complete(slice_, seconds, now, failed=True)
        sequences = [member.sequence for member in slice_.members]
        if is_memory_short(error):  # no fault of the device
            log.error("no memory for a slice of %d sequences, %d steps", len(sequences), slice_.cells)
            self._hand_back(self._outcomes.exhausted, sequences)
            return
        log.error("a slice of %d sequences failed", len(sequences), exc_info=error)
        self._hand_back(self._outcomes.failed, sequences)
        self._count_failure()

    def _count_failure(self) -> None:
        """Counts a slice or a batch that failed by no lack of memory; raises RuntimeError for too many in a row."""
        self._failures += 1
        if self._failures >= _FAILURES_IN_A_ROW:
            raise RuntimeError(f"{self._failures} slices or batches failed in a row")

    def _advance(self, batch: TrainingBatch, before: SliceInFlight | None) -> None:
        """Runs one piece of a training batch. A failure ends that batch only, until there are too many in a row.

        before: a slice under way, whose results are handed back while the piece computes.
        """
        self._set_threads(self._threads or batch.weights.threads)
        outcomes: list[Any] | None = None
        failed = fault = False
        stop = self._start_timer()
        try:
            if batch.program is None:
                batch.program = self._start_program(batch)
            with precision.products("full", batch.weights.network.device):
                next(batch.program)
        except StopIteration as end:
            outcomes = end.value
            failed = fault = batch.failed
        except Exception as error:
            outcomes, failed = _failed_batch(batch, error), True
            fault = not is_memory_short(error)
        if before is not None:
            self._finish(before, None)
        try:
            seconds = stop()
        except Exception as error:  # a GPU reports errors late
            seconds = 0.0
            if is_memory_short(error):  # for the timer's event: what was done is done, and the program may go on
                log.warning("no memory to time a piece of a training batch")
            else:
                outcomes, failed, fault = _failed_batch(batch, error), True, True
        batch.seconds += seconds
        self._metrics.busy(seconds)
        with self._ready:
            self._scheduler.advanced(seconds, time.monotonic(), finished=outcomes is not None, failed=failed)
        if outcomes is None:
            return
        for job in batch.jobs:
            job.compute_seconds = batch.seconds
        self._hand_back(self._outcomes.trained, list(zip(batch.jobs, outcomes, strict=True)))
        if fault:
            self._count_failure()
        elif not failed:
            self._failures = 0
        self._metrics.trained(batch)

    def _start_timer(self) -> Callable[[], float]:
        try:
            return self._staging.timer()
        except Exception as error:
            if not is_memory_short(error):
                raise
            log.warning("no memory to time a piece of a training batch")
            return lambda: 0.0

    def _set_threads(self, count: int) -> None:
        if count != self._in_use:  # it would tell OpenMP anew each time
            set_threads(count)
            self._in_use = count

    def _hand_back(self, callback: Callable[..., object], argument: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(callback, argument)


def _failed_batch(batch: TrainingBatch, error: Exception) -> list[ServerError]:
    """Logs why a training batch failed; returns the errors of its jobs."""
    if is_memory_short(error):
        log.error("no memory for a training batch of %d jobs", len(batch.jobs))
        return [memory_exhausted() for _ in batch.jobs]
    log.error("a training batch of %d jobs failed", len(batch.jobs), exc_info=error)
    return [batch_failed() for _ in batch.jobs]
