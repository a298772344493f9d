"""The engine's API on the event loop: what requests ask of it, and what the device thread tells it.

The scheduler is shared with the device thread, and guarded by one lock.
"""

import asyncio
import logging
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Set

import torch

from seqloom_server.config import ServerConfig
from seqloom_server.engine.admission.live_load import LiveLoad
from seqloom_server.engine.admission.loop_time import TimedLoop
from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.overload import ONE_SECOND, memory_exhausted, overloaded
from seqloom_server.engine.core.sequence import Chunk, Op, OutputSpec, Sequence, Sink, StateArrays
from seqloom_server.engine.core.stream_group import StreamGroup
from seqloom_server.engine.core.training_job import Job
from seqloom_server.engine.core.worker_thread import start_workers
from seqloom_server.engine.device.device_thread import DeviceThread, Results, TrainingResults
from seqloom_server.engine.device.transfers import staging_of
from seqloom_server.engine.engine_metrics import EngineMetrics
from seqloom_server.engine.models.registry import Registry
from seqloom_server.engine.models.served_weights import ServedWeights
from seqloom_server.engine.open_jobs import OpenJobs
from seqloom_server.engine.open_sequences import OpenSequences
from seqloom_server.engine.scheduling.deadlines import deadline_passed
from seqloom_server.engine.scheduling.scheduler import Scheduler
from seqloom_server.engine.training.batch_programs import BatchPrograms
from seqloom_server.engine.training.run_table import RunTable
from seqloom_server.engine.training.run_weights import RunWeights
from seqloom_server.engine.training.runs_holder import InUse
from seqloom_server.errors import Overload, Reason, ServerError
from seqloom_server.memory import is_memory_short
from seqloom_server.metrics import Metrics
from seqloom_server.nn.cpu_threads import compute_alone
from seqloom_server.nn.forward.product_choice import choices

log = logging.getLogger(__name__)

_PRODUCTS = ".products.json"  # in the models folder: which products are faster on which processor
_STOP_SECONDS = 10.0  # how long close() waits for the slice in flight


class CannotStart(Exception):
    """The server cannot start; the text is one line for the user."""


class Engine:
    """Runs checked requests. Call its methods on the event loop that started it.

    device: that networks run on, "cpu" or "cuda".
    """

    def __init__(self, config: ServerConfig, metrics: Metrics) -> None:
        self._config = config
        self.device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self.registry = Registry(
            pathlib.Path(config.models),
            self.device,
            config.max_live_versions,
            config.max_model_bytes,
            config.max_live_bytes,
            threads=config.threads,
        )
        self._scheduler = Scheduler(_limits(config, self.device))
        self.runs = RunTable(
            pathlib.Path(config.runs), self.registry, self, self.device, config.max_runs, config.max_held_calls
        )
        self._metrics = EngineMetrics(
            metrics,
            self._scheduler,
            self.registry,
            self.device,
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
        self.jobs = OpenJobs(self._scheduler.training, self._lock, self._metrics, self._check_if_empty)
        self.sequences = OpenSequences(
            self._scheduler,
            self._lock,
            self._metrics,
            self.registry,
            {Op.STREAM: config.max_sessions, Op.INFER: config.max_queue_items},
            LiveLoad(config.max_live_load, pace=self._scheduler.pace),
            self._check_if_empty,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle_watch: asyncio.Task[None] | None = None
        self._releasing_runs: asyncio.Task[None] | None = None
        self._draining = False
        self._death: BaseException | None = None
        self._on_death: list[Callable[[], None]] = []
        self._emptied = asyncio.Event()

    async def start(self, address: str = "") -> None:
        """Loads every model and every run, and starts the device thread.

        address: HOST:PORT of this server, shown to other servers as the holder of the runs. Raises CannotStart if the
        models or runs folder cannot be read, if another server holds the runs, and with strict_models if a model or a
        run is broken.
        """
        self._loop = asyncio.get_running_loop()
        if isinstance(self._loop, TimedLoop):
            self.sequences.load = LiveLoad(
                self._config.max_live_load, self._loop.idle_seconds, pace=self._scheduler.pace
            )
        compute_alone()
        self._loop.set_default_executor(start_workers(compute_alone))
        strict, models, runs = self._config.strict_models, self._config.models, self._config.runs
        await asyncio.to_thread(choices.keep_in, pathlib.Path(models, _PRODUCTS))
        try:
            held = await self.runs.hold(address, wait=False)
            try:
                await self.registry.load_all(strict=strict)  # while a server that shuts down still holds the runs
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
        """Adds a callback for the death of the device thread; it is called on the event loop, now if it has died."""
        self._on_death.append(callback)
        if self._death is not None:
            callback()

    @property
    def alive(self) -> bool:
        """Whether the device thread runs, or has not started yet."""
        return self._death is None

    @property
    def open_sessions(self) -> int:
        """The number of open live sessions."""
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
        caller: str = "",
        rate: float = 0.0,
        total_steps: int = 0,
        likely_steps: int = 0,
        group: StreamGroup | None = None,
        resumed: int | None = None,
    ) -> Sequence:
        """Returns a new sequence under these weights; it runs as chunks are fed to it.

        deadline: by time.monotonic(). caller: whom it is counted for. rate: steps a second of a live session that is
        promised its delay. total_steps: of a whole sequence that says them before its frames come. likely_steps: of one
        whose frames have come and are not read yet: it is refused before they are, or in the end by feed(). group: the
        streams of a live session that are advanced together. resumed: the steps of a live session that was lost and
        goes on. Raises ServerError OVERLOADED, SHUTTING_DOWN or ENGINE_DEAD.
        """
        self.check_serving()
        sequence = Sequence(
            op,
            weights,
            output,
            sink,
            initial_state=initial_state,
            deadline=deadline,
            snapshot_interval=snapshot_interval,
            caller=caller,
            rate=rate,
            total_steps=total_steps,
            group=group,
            resumed=resumed is not None,
            steps_done=resumed or 0,
            last_active=time.monotonic(),
        )
        self.sequences.add(sequence, weights, likely_steps)
        return sequence

    def refuses(self, now: float) -> bool:
        """Whether a whole sequence was refused in the last second."""
        return self._scheduler.refuses(now)

    def feed(self, items: Iterable[tuple[Sequence, list[Chunk]]]) -> list[tuple[Sequence, ServerError]]:
        """Queues chunks of sequences; returns the sequences that were refused, which have ended, and their errors."""
        return self.sequences.feed(items)

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """Ends sequences without a result; nothing more is delivered to their sinks."""
        for sequence in self.sequences.drop(sequences):
            self._metrics.cancelled("running" if sequence.started else "queued")

    def unanswered(self, sequences: Iterable[Sequence]) -> None:
        """Counts what was computed in vain of sequences that have ended: another one of their call has failed."""
        for sequence in sequences:
            if sequence not in self.sequences and not sequence.dropped:
                self._metrics.wasted(sequence.op, sequence.weights.model, sequence.steps_done)

    def train(self, job: Job) -> None:
        """Queues a training job. Raises ServerError OVERLOADED, SHUTTING_DOWN or ENGINE_DEAD."""
        self.check_serving()
        self.run_job(job)

    def run_job(self, job: Job) -> None:
        """Queues a job even while the server shuts down, when runs are saved. Raises ServerError."""
        self._check_alive()
        self.jobs.add(job)

    def end_jobs(self, weights: RunWeights, error: ServerError) -> None:
        """Ends every job under a run's weights with the error."""
        self.jobs.abandon([job for job in self.jobs if job.weights is weights], error)

    def stepped(self, model: str) -> None:
        """Counts an optimizer step of a run of the model."""
        self._metrics.stepped(model)

    def deduplicated(self, model: str) -> None:
        """Counts a repeated call on a run of the model."""
        self._metrics.deduplicated(model)

    def run_not_saved(self) -> None:
        """Counts a checkpoint of a run that could not be written."""
        self._metrics.run_not_saved()

    def trained(self, results: TrainingResults) -> None:
        """Ends training jobs with their outcomes; called for the device thread."""
        for job, outcome in results:
            self.jobs.end(job, outcome)

    async def drain(self, grace_seconds: float) -> None:
        """Refuses new sequences, waits for the open ones, and fails those left after the grace period.

        Then saves the runs and releases their folder, which another server may take before this process ends. With the
        device thread dead, the checkpoints that it has made are written; clients send what came after them again.
        """
        self._draining = True
        await self.runs.announce_shutdown()
        if self.sequences or self.jobs:
            self._emptied.clear()
            try:
                await asyncio.wait_for(self._emptied.wait(), grace_seconds)
            except TimeoutError:
                # a run is saved with the calls that have begun, so their replies must not be errors
                self._end_all(except_jobs={job for job in self.jobs.begun() if job.call is not None})
        if self.alive:
            await self.runs.save_all()
        else:
            await self.runs.write_all()
        await self.runs.release()

    def close(self) -> None:
        """Stops the device thread after the slice in flight, and fails all open work. Safe from any thread."""
        self._draining = True
        self._device_thread.stop(_STOP_SECONDS)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._end_all()
        self._releasing_runs = asyncio.ensure_future(self.runs.release())  # if drain() was not called

    def _end_all(self, except_jobs: Set[Job] = frozenset()) -> None:
        error = ServerError(Reason.SHUTTING_DOWN, "the server is shutting down")
        self.sequences.fail(self.sequences, error)
        self.jobs.abandon([job for job in self.jobs if job not in except_jobs], error)
        if self._idle_watch is not None:
            self._idle_watch.cancel()

    def check_serving(self) -> None:
        """Raises ServerError SHUTTING_DOWN or ENGINE_DEAD if new work is refused."""
        self._check_alive()
        if self._draining:
            raise ServerError(Reason.SHUTTING_DOWN, "the server is shutting down: it accepts no new work")

    def _check_alive(self) -> None:
        if self._death is not None:
            raise ServerError(Reason.ENGINE_DEAD, "the device thread has died: the server ends, to be started again")

    def _check_if_empty(self) -> None:
        if not self.sequences and not self.jobs:
            self._emptied.set()

    def ran(self, results: Results) -> None:
        """Delivers the results of a slice; called for the device thread."""
        answered: Sequence | None = None
        for member, result in results:
            sequence = member.sequence
            if sequence.dropped:
                if sequence.op is Op.STREAM and member.steps:
                    self._metrics.wasted(Op.STREAM, sequence.weights.model, member.cells)
                continue
            try:
                sequence.sink.deliver(sequence, result)
            except Exception as problem:
                log.exception("outputs could not be delivered")
                short = is_memory_short(problem)
                why = ServerError(Reason.INTERNAL, "outputs could not be delivered")
                self.sequences.fail([sequence], memory_exhausted("the outputs") if short else why)
            if member.final and sequence in self.sequences:
                self.sequences.forget(sequence)
                if sequence.op is Op.INFER:
                    answered = sequence
        if answered is not None:  # one of a slice: counting all would cost each of them as much as its admission
            self._metrics.answered(answered, time.monotonic())

    def failed(self, sequences: list[Sequence]) -> None:
        """Fails the sequences of a slice that failed; called for the device thread."""
        self.sequences.fail(sequences, ServerError(Reason.INTERNAL, "the batch failed on the device"))

    def exhausted(self, sequences: list[Sequence]) -> None:
        """Fails the sequences of a slice that ran out of memory; called for the device thread."""
        error = memory_exhausted()
        self._metrics.rejected(error, len(self.sequences.fail(sequences, error)))

    def expired(self, sequences: list[Sequence]) -> None:
        """Fails sequences that could not end by their deadlines, or waited for too long; for the device thread."""
        now = time.monotonic()
        late: list[Sequence] = []
        waited: list[Sequence] = []
        for sequence in sequences:
            met = sequence.deadline is None or sequence.deadline > now
            has_waited = met and not sequence.started and self._scheduler.has_waited(sequence, now)
            (waited if has_waited else late).append(sequence)
        for _ in self.sequences.fail(late, deadline_passed()):
            self._metrics.cancelled("deadline")
        error = overloaded("the sequence waited for longer than max_queue_seconds", ONE_SECOND, Overload.TOO_LATE)
        if waited := self.sequences.fail(waited, error):
            self._metrics.rejected(error, len(waited))

    def died(self, error: BaseException) -> None:
        """Fails all open work; called when the device thread dies."""
        self._death = error
        dead = ServerError(Reason.ENGINE_DEAD, "the device thread has died")
        self.sequences.fail(self.sequences, dead)
        self.jobs.abandon(self.jobs, dead)
        for callback in self._on_death:
            callback()

    async def _end_idle_sequences(self) -> None:
        limit = self._config.idle_seconds
        error = ServerError(Reason.SESSION_IDLE, f"the session was idle for {limit:g} s and was ended")
        while True:
            await asyncio.sleep(limit / 10)
            for _ in self.sequences.fail(self.sequences.idle(limit), error):
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
        max_queue_seconds=config.max_queue_seconds,
        shares={Op.STREAM: config.live_share, Op.INFER: config.inference_share, Op.TRAIN: config.training_share},
    )
