"""The device thread: takes the next slice as soon as it is free, runs it, and hands its outcomes back in one call."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from seqloom_server.engine import programs, runner
from seqloom_server.engine.report import Report
from seqloom_server.engine.request import Member, Piece, Sequence, Slice
from seqloom_server.engine.runner import ServedWeights
from seqloom_server.engine.scheduler import Scheduler
from seqloom_server.engine.training import Job, TrainingBatch
from seqloom_server.errors import Reason, ServerError

log = logging.getLogger(__name__)

_FAILURES_IN_A_ROW = 5  # after these the device is taken for dead

Results = list[tuple[Member, Piece]]
TrainingResults = list[tuple[Job, Any]]  # or the ServerError of that job


class Outcomes(Protocol):
    """Who hears of outcomes, on the event loop."""

    def ran(self, results: Results) -> None: ...

    def failed(self, sequences: list[Sequence]) -> None: ...

    def exhausted(self, sequences: list[Sequence]) -> None: ...

    def expired(self, sequences: list[Sequence]) -> None: ...

    def trained(self, results: TrainingResults) -> None: ...

    def died(self, error: BaseException) -> None: ...


class DeviceThread:
    """The one thread that runs networks.

    ready: the lock around `scheduler`, notified when there is something to do. threads: torch's; 0 chooses by network.
    settings: how training is cut.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        ready: threading.Condition,
        report: Report,
        outcomes: Outcomes,
        *,
        threads: int = 0,
        poison: bool = False,
        settings: programs.Settings | None = None,
    ) -> None:
        self._settings = settings or programs.Settings()
        self._scheduler = scheduler
        self._ready = ready
        self._report = report
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
        """Waits until there is something to do and does it; returns False when it is to stop.

        What ran is held by this call alone, so that an idle thread keeps no weights and no outputs alive.
        """
        with self._ready:
            while True:
                if self._stopping:
                    return False
                now = time.monotonic()
                expired = self._scheduler.expire(now)
                late = self._scheduler.training.expire(now)
                work = self._scheduler.next_work(now)
                if expired or late or work is not None:
                    break
                deadline = self._scheduler.next_deadline()
                # a whole sequence whose frames never come has a deadline, too
                self._ready.wait(None if deadline is None else min(deadline - now, threading.TIMEOUT_MAX))
        if expired:
            self._hand_back(self._outcomes.expired, expired)
        if late:
            error = ServerError(Reason.DEADLINE_EXCEEDED, "the deadline passed while the request was queued")
            self._hand_back(self._outcomes.trained, [(job, error) for job in late])
        if isinstance(work, TrainingBatch):
            self._advance(work)
        elif work is not None:
            self._run(work)
        return True

    def _run(self, piece: Slice) -> None:
        """Runs one slice; a failure is its members' alone, until there are too many in a row."""
        assert isinstance(piece.weights, ServedWeights)
        self._set_threads(self._threads or piece.weights.threads)
        start = time.monotonic()
        results: Results | None = None
        exhausted = False
        try:
            results = runner.run(piece, poison=self._poison)
        except (MemoryError, torch.OutOfMemoryError):
            log.error("no memory for a slice of %d sequences, %d steps", len(piece.members), piece.cells)
            exhausted = True
        except Exception:
            log.exception("a slice of %d sequences failed", len(piece.members))
        finally:
            now = time.monotonic()
            with self._ready:
                self._scheduler.complete(piece, now - start, now, failed=results is None)
        if exhausted:  # no fault of the device
            self._hand_back(self._outcomes.exhausted, [member.sequence for member in piece.members])
            return
        if results is None:
            self._failures += 1
            self._hand_back(self._outcomes.failed, [member.sequence for member in piece.members])
            if self._failures >= _FAILURES_IN_A_ROW:
                raise RuntimeError(f"{self._failures} slices failed in a row")
            return
        self._failures = 0
        self._hand_back(self._outcomes.ran, results)
        # the callers have their outputs: now there is time for the books
        piece.weights.cost.observe(piece.steps, piece.cells, now - start)
        self._report.ran(piece, now - start)

    def _advance(self, batch: TrainingBatch) -> None:
        """Runs one piece of a training batch; a failure is that batch's alone, until there are too many in a row."""
        self._set_threads(self._threads or batch.weights.threads)
        start = time.monotonic()
        outcomes: list[Any] | None = None
        failed = False
        try:
            if batch.program is None:
                batch.program = programs.start(batch, self._settings)
            next(batch.program)
        except StopIteration as end:
            outcomes = end.value
        except (MemoryError, torch.OutOfMemoryError):
            log.error("no memory for a training batch of %d jobs", len(batch.jobs))
            error = ServerError(Reason.OVERLOADED, "the server's memory is exhausted", retry_after=1.0)
            outcomes = [error] * len(batch.jobs)
        except Exception:
            log.exception("a training batch of %d jobs failed", len(batch.jobs))
            outcomes = [ServerError(Reason.INTERNAL, "the batch failed on the device")] * len(batch.jobs)
            failed = True
        finally:
            seconds = time.monotonic() - start
            batch.seconds += seconds
            with self._ready:
                self._scheduler.advanced(seconds, finished=outcomes is not None)
        if outcomes is None:
            return
        for job in batch.jobs:
            job.compute_seconds = batch.seconds
        self._hand_back(self._outcomes.trained, list(zip(batch.jobs, outcomes, strict=True)))
        self._failures = self._failures + 1 if failed else 0
        if self._failures >= _FAILURES_IN_A_ROW:
            raise RuntimeError(f"{self._failures} batches failed in a row")
        self._report.trained(batch)

    def _set_threads(self, count: int) -> None:
        if count != self._in_use:  # it would tell OpenMP anew each time
            torch.set_num_threads(count)
            self._in_use = count

    def _hand_back(self, callback: Callable[..., object], argument: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(callback, argument)
