"""The engine's face on the event loop: admits sequences, feeds them, and gives each its outcome exactly once.

One lock guards the scheduler, which the device thread shares.
"""

import asyncio
import logging
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Set

import torch

from seqloom_server.config import ServerConfig
from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.overload import ONE_SECOND, memory_exhausted, overloaded
from seqloom_server.engine.core.sequence import Chunk, Op, OutputSpec, Sequence, Sink, StateArrays
from seqloom_server.engine.core.session_window import is_idle
from seqloom_server.engine.core.training_job import Job
from seqloom_server.engine.device.device_thread import DeviceThread, Results, TrainingResults
from seqloom_server.engine.device.transfers import staging_of
from seqloom_server.engine.engine_metrics import EngineMetrics
from seqloom_server.engine.models.registry import Registry
from seqloom_server.engine.models.served_weights import ServedWeights
from seqloom_server.engine.open_jobs import OpenJobs
from seqloom_server.engine.scheduling.scheduler import Scheduler
from seqloom_server.engine.training.batch_programs import BatchPrograms
from seqloom_server.engine.training.run_table import RunTable
from seqloom_server.engine.training.run_weights import RunWeights
from seqloom_server.engine.training.runs_holder import InUse
from seqloom_server.errors import Reason, ServerError
from seqloom_server.metrics import Metrics

log = logging.getLogger(__name__)

_STOP_SECONDS = 10.0  # how long close() waits for the slice in flight


class CannotStart(Exception):
    """What keeps the server from starting, in one line for people."""


class Engine:
    """Everything between a checked request and its outcome. Its methods belong to the event loop that started it.

    device: where networks run, "cpu" or "cuda".
    """

    def __init__(self, config: ServerConfig, metrics: Metrics) -> None:
        self._config = config
        self.device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self.registry = Registry(
            pathlib.Path(config.models), self.device, config.max_live_versions, config.max_model_bytes
        )
        self._scheduler = Scheduler(_limits(config, self.device))
        self.runs = RunTable(
            pathlib.Path(config.runs), self.registry, self, self.device, config.max_runs, config.max_held_calls
        )
        self._metrics = EngineMetrics(
            metrics,
            self._scheduler,
            self.registry,
            lambda: self.registry.device_bytes() + self.runs.device_bytes,
        )
        self._lock = threading.Condition()
        self._device_thread = DeviceThread(
            self._scheduler,
            self._lock,
            self._metrics,
            self,
            BatchPrograms(config.training_piece_gflop * 1e9, config.max_activation_bytes).start,
            threads=config.threads,
            poison=config.poison_slots,
            staging=staging_of(self.device),
        )
        self.jobs = OpenJobs(self._scheduler.training, self._lock, self._metrics, self._look_if_empty)
        self._open: dict[Sequence, None] = {}  # every sequence that has not ended
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle_watch: asyncio.Task[None] | None = None
        self._letting_go: asyncio.Task[None] | None = None
        self._draining = False
        self._death: BaseException | None = None
        self._on_death: list[Callable[[], None]] = []
        self._emptied = asyncio.Event()

    async def start(self, address: str = "") -> None:
        """Loads every model and every run, and starts the device thread.

        address: HOST:PORT, by which other servers are told who has the runs. Raises CannotStart where a root cannot be
        read or the runs are another server's, and with strict_models where a folder is broken.
        """
        self._loop = asyncio.get_running_loop()
        if self._config.threads:
            torch.set_num_threads(self._config.threads)
        strict, models, runs = self._config.strict_models, self._config.models, self._config.runs
        try:
            held = await self.runs.hold(address, wait=False)
            try:
                await self.registry.load_all(strict=strict)  # while a server that ends still has the runs
            except (ServerError, OSError) as error:
                raise CannotStart(f"models: {models}: {error}") from None
            if not held:
                await self.runs.hold(address)
            await self.runs.recover(strict=strict)
        except InUse as error:
            raise CannotStart(f"runs: {runs} {error}") from None
        except ServerError as error:
            raise CannotStart(f"runs: {runs}: {error}") from None
        except OSError as error:
            raise CannotStart(f"runs: {runs} cannot be locked: {error.strerror or error}") from None
        self._device_thread.start(self._loop)
        self._idle_watch = asyncio.create_task(self._end_idle_sequences())

    def on_death(self, callback: Callable[[], None]) -> None:
        """Calls back on the event loop when the device thread has died."""
        self._on_death.append(callback)

    @property
    def alive(self) -> bool:
        """Whether the device thread has not died."""
        return self._death is None

    @property
    def open_sessions(self) -> int:
        """Live sessions that are open."""
        return self._scheduler.live_sessions

    def open(
        self,
        weights: ServedWeights,
        op: Op,
        output: OutputSpec,
        sink: Sink,
        *,
        initial_state: StateArrays | None = None,
        deadline: float | None = None,
        snapshot_interval: int = 0,
    ) -> Sequence:
        """Returns a new sequence under these weights; it runs when something is fed to it.

        deadline: on time.monotonic's clock. Raises ServerError OVERLOADED, SHUTTING_DOWN or ENGINE_DEAD.
        """
        self._check_admitting(op)
        sequence = Sequence(
            op,
            weights,
            output,
            sink,
            initial_state=initial_state,
            deadline=deadline,
            snapshot_interval=snapshot_interval,
            last_active=time.monotonic(),
        )
        self._open[sequence] = None
        self.registry.hold(weights)
        if op is Op.STREAM:
            self._scheduler.live_sessions += 1
            self._metrics.session_opened(sequence)
        return sequence

    def feed(self, items: Iterable[tuple[Sequence, list[Chunk]]]) -> list[tuple[Sequence, ServerError]]:
        """Gives chunks to sequences; returns those that were refused, which are gone, with why."""
        refused = []
        now = time.monotonic()
        with self._lock:
            for sequence, chunks in items:
                try:
                    self._scheduler.push(sequence, chunks, now)
                except ServerError as error:
                    self._scheduler.cancel(sequence)  # so that none of its later chunks slips in behind the gap
                    refused.append((sequence, error))
            self._lock.notify()
        self._drop(sequence for sequence, _ in refused)
        for _, refusal in refused:
            self._metrics.rejected(refusal.reason)
        return refused

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """Drops sequences whose caller no longer wants them; nothing more is delivered for them."""
        for sequence in self._drop(sequences):
            self._metrics.cancelled("running" if sequence.started else "queued")

    def train(self, job: Job) -> None:
        """Takes a job on; its outcome comes once. Raises ServerError OVERLOADED, SHUTTING_DOWN or ENGINE_DEAD."""
        self.check_serving()
        self.run_job(job)

    def run_job(self, job: Job) -> None:
        """Takes it on also while the server shuts down, which is when runs are saved. Raises ServerError."""
        self._check_alive()
        self.jobs.add(job)

    def end_jobs(self, weights: RunWeights, error: ServerError) -> None:
        """Ends every job under a run's weights with the error."""
        self.jobs.abandon([job for job in self.jobs if job.weights is weights], error)

    def stepped(self, model: str) -> None:
        """A run of the model has applied a step."""
        self._metrics.stepped(model)

    def deduplicated(self, model: str) -> None:
        """A call on a run of the model was a repeat."""
        self._metrics.deduplicated(model)

    def trained(self, results: TrainingResults) -> None:
        """The device thread's: outcomes of training jobs."""
        for job, outcome in results:
            self.jobs.end(job, outcome)

    async def drain(self, grace_seconds: float) -> None:
        """Takes no new sequences, lets the open ones end, and fails what is left after the grace period.

        The runs are saved then, and another server may have them, also before this process is gone.
        """
        self._draining = True
        await self.runs.tell_draining()
        if self._open or self.jobs:
            self._emptied.clear()
            try:
                await asyncio.wait_for(self._emptied.wait(), grace_seconds)
            except TimeoutError:
                # what a run has begun is saved with it, and its reply must be the true one
                self._end_all(but={job for job in self.jobs.begun() if job.call is not None})
        if self.alive:
            await self.runs.save_all()
        await self.runs.let_go()

    def close(self) -> None:
        """Stops the device thread after the slice in flight and fails what is left. Safe from any thread."""
        self._draining = True
        self._device_thread.stop(_STOP_SECONDS)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._end_all()
        self._letting_go = asyncio.ensure_future(self.runs.let_go())  # where nobody waited for drain()

    def _end_all(self, but: Set[Job] = frozenset()) -> None:
        error = ServerError(Reason.SHUTTING_DOWN, "the server is shutting down")
        self._fail(list(self._open), error)
        self.jobs.abandon([job for job in self.jobs if job not in but], error)
        if self._idle_watch is not None:
            self._idle_watch.cancel()

    def check_serving(self) -> None:
        """Raises ServerError SHUTTING_DOWN or ENGINE_DEAD where no new work is taken."""
        self._check_alive()
        if self._draining:
            raise ServerError(Reason.SHUTTING_DOWN, "the server is shutting down and takes no new work")

    def _check_alive(self) -> None:
        if self._death is not None:
            raise ServerError(Reason.ENGINE_DEAD, "the device thread has died: the server must be restarted")

    def _check_admitting(self, op: Op) -> None:
        self.check_serving()
        live = self.open_sessions
        count, most, what = (
            (live, self._config.max_sessions, "sessions")
            if op is Op.STREAM
            else (len(self._open) - live, self._config.max_queue_items, "sequences")
        )
        if count >= most:
            self._metrics.rejected(Reason.OVERLOADED)
            raise overloaded(f"{count} {what} are open: no more now", ONE_SECOND)

    def _drop(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """Ends sequences without an outcome; returns those of them that were open."""
        dropped = [sequence for sequence in dict.fromkeys(sequences) if sequence in self._open]
        if not dropped:  # as after every call that ended well: no need to wait for the lock
            return []
        with self._lock:
            for sequence in dropped:
                self._scheduler.cancel(sequence)
        for sequence in dropped:
            self._forget(sequence)
        return dropped

    def _forget(self, sequence: Sequence) -> None:
        """The one place where a sequence stops being open."""
        del self._open[sequence]
        if sequence.op is Op.STREAM:
            self._scheduler.live_sessions -= 1
            self._metrics.session_closed(sequence)
        self.registry.release(sequence.weights)
        self._look_if_empty()

    def _look_if_empty(self) -> None:
        if not self._open and not self.jobs:
            self._emptied.set()

    def _fail(self, sequences: Iterable[Sequence], error: ServerError) -> list[Sequence]:
        """Ends sequences with an error; returns those of them that were open."""
        dropped = self._drop(sequences)
        for sequence in dropped:
            try:
                sequence.sink.fail(sequence, error)
            except Exception:
                log.exception("a caller could not be told: %s", error)
        return dropped

    def ran(self, results: Results) -> None:
        """The device thread's: hands out what a slice gave."""
        for member, result in results:
            sequence = member.sequence
            if sequence.dropped:
                continue
            try:
                sequence.sink.deliver(sequence, result)
            except Exception:
                log.exception("outputs could not be handed out")
                self._fail([sequence], ServerError(Reason.INTERNAL, "outputs could not be handed out"))
            if member.final and sequence in self._open:
                self._forget(sequence)

    def failed(self, sequences: list[Sequence]) -> None:
        """The device thread's: a slice failed, and its members with it."""
        self._fail(sequences, ServerError(Reason.INTERNAL, "the batch failed on the device"))

    def exhausted(self, sequences: list[Sequence]) -> None:
        """The device thread's: there was no memory for a slice."""
        error = memory_exhausted()
        for _ in self._fail(sequences, error):
            self._metrics.rejected(error.reason)

    def expired(self, sequences: list[Sequence]) -> None:
        """The device thread's: deadlines passed in the queue."""
        error = ServerError(Reason.DEADLINE_EXCEEDED, "the deadline passed while the request was queued")
        for _ in self._fail(sequences, error):
            self._metrics.cancelled("deadline")

    def died(self, error: BaseException) -> None:
        """The device thread's: it will run nothing more."""
        self._death = error
        dead = ServerError(Reason.ENGINE_DEAD, "the device thread has died")
        self._fail(list(self._open), dead)
        self.jobs.abandon(self.jobs, dead)
        for callback in self._on_death:
            callback()

    async def _end_idle_sequences(self) -> None:
        limit = self._config.idle_seconds
        error = ServerError(Reason.SESSION_IDLE, f"nothing came for {limit:g} s: the session was ended")
        while True:
            await asyncio.sleep(limit / 10)
            now = time.monotonic()
            with self._lock:
                idle = [sequence for sequence in self._open if is_idle(sequence, now, limit)]
            for _ in self._fail(idle, error):
                self._metrics.cancelled("idle")


def _limits(config: ServerConfig, device: str) -> SchedulerLimits:
    return SchedulerLimits(
        max_batch_sequences=config.max_batch_sequences,
        max_batch_steps=config.max_batch_steps,
        slice_seconds=config.max_slice_ms / 1e3,
        bulk_slice_seconds=config.bulk_slice_ms / 1e3,
        grain_seconds=0.0 if device == "cuda" else config.max_slice_ms / 4e3,
        max_padding=config.max_padding,
        max_queue_items=config.max_queue_items,
        max_queue_steps=config.max_queue_steps,
        max_queue_bytes=config.max_queue_bytes,
        shares={Op.STREAM: config.live_share, Op.INFER: config.inference_share, Op.TRAIN: config.training_share},
    )
