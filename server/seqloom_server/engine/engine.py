"""The engine's two threads: the event loop admits and delivers, the device thread takes slices and runs them.

One lock guards the scheduler. The device thread takes the next slice as soon as it is free, and hands all outcomes of a
slice back to the loop in one call.
"""

import asyncio
import logging
import pathlib
import threading
import time
from collections.abc import Callable, Iterable

import torch

from seqloom_server.config import ServerConfig
from seqloom_server.engine import runner
from seqloom_server.engine.registry import Registry
from seqloom_server.engine.report import Report
from seqloom_server.engine.request import Chunk, Member, Op, OutputSpec, Piece, Sequence, Sink, Slice, StateArrays
from seqloom_server.engine.scheduler import Scheduler, SchedulerLimits
from seqloom_server.engine.sessions import is_idle
from seqloom_server.errors import Reason, ServerError
from seqloom_server.metrics import Metrics

log = logging.getLogger(__name__)

_FAILURES_IN_A_ROW = 5  # after these the device is taken for dead


class Engine:
    """Everything between a checked request and its outcome. Its methods belong to the event loop that started it."""

    def __init__(self, config: ServerConfig, metrics: Metrics) -> None:
        self._config = config
        device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self.device = device
        self.registry = Registry(pathlib.Path(config.models), device, config.max_live_versions)
        self._scheduler = Scheduler(_limits(config, device))
        self._report = Report(metrics, self._scheduler, self.registry, device)
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._serve_device, name="seqloom-device", daemon=True)
        self._open: dict[Sequence, None] = {}  # every sequence that has not ended
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle_watch: asyncio.Task[None] | None = None
        self._draining = False
        self._closing = False
        self._death: BaseException | None = None
        self._on_death: list[Callable[[], None]] = []
        self._emptied = asyncio.Event()

    async def start(self) -> None:
        """Loads every model and starts the device thread. Raises ServerError where a model folder is broken."""
        self._loop = asyncio.get_running_loop()
        torch.set_num_threads(self._config.threads or max(1, torch.get_num_threads()))
        await self.registry.load_all()
        self._thread.start()
        self._idle_watch = asyncio.create_task(self._end_idle_sessions())

    def on_death(self, callback: Callable[[], None]) -> None:
        """Calls back on the event loop when the device thread has died."""
        self._on_death.append(callback)

    @property
    def alive(self) -> bool:
        return self._death is None

    @property
    def open_sessions(self) -> int:
        """Live sessions that are open."""
        return self._scheduler.live_sessions

    def open(
        self,
        weights: runner.ServedWeights,
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
        self._check_admitting()
        if op is Op.STREAM and self.open_sessions >= self._config.max_sessions:
            raise self._refuse(
                ServerError(Reason.OVERLOADED, f"{self.open_sessions} sessions are open: no more now", retry_after=1.0)
            )
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
        if op is Op.STREAM:
            self._scheduler.live_sessions += 1
            self._report.session_opened(sequence)
        return sequence

    def feed(self, items: Iterable[tuple[Sequence, list[Chunk]]]) -> list[tuple[Sequence, ServerError]]:
        """Gives chunks to sequences; returns those that were refused, which have failed and are gone."""
        refused = []
        now = time.monotonic()
        with self._wake:
            for sequence, chunks in items:
                try:
                    self._scheduler.push(sequence, chunks, now)
                except ServerError as error:
                    refused.append((sequence, self._refuse(error)))
            self._wake.notify()
        for sequence, _ in refused:
            self._drop(sequence)
        return refused

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """Drops sequences whose caller no longer wants them; nothing more is delivered for them."""
        for sequence in sequences:
            if sequence in self._open:
                self._report.cancelled("running" if sequence.started else "queued")
                self._drop(sequence)

    async def drain(self, grace_seconds: float) -> None:
        """Takes no new sequences, lets the open ones end, and fails what is left after the grace period."""
        self._draining = True
        if self._open:
            self._emptied.clear()
            try:
                await asyncio.wait_for(self._emptied.wait(), grace_seconds)
            except TimeoutError:
                self._fail(list(self._open), ServerError(Reason.SHUTTING_DOWN, "the server is shutting down"))

    def close(self) -> None:
        """Stops the device thread after the slice in flight."""
        if self._idle_watch is not None:
            self._idle_watch.cancel()
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _check_admitting(self) -> None:
        if self._death is not None:
            raise ServerError(Reason.ENGINE_DEAD, "the device thread has died: the server must be restarted")
        if self._draining:
            raise ServerError(Reason.SHUTTING_DOWN, "the server is shutting down and takes no new work")

    def _refuse(self, error: ServerError) -> ServerError:
        self._report.rejected(error.reason)
        return error

    def _drop(self, sequence: Sequence) -> None:
        """Ends a sequence without an outcome."""
        with self._wake:
            self._scheduler.cancel(sequence)
        self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        """The one place where a sequence stops being open."""
        if sequence not in self._open:
            return
        del self._open[sequence]
        if sequence.op is Op.STREAM:
            self._scheduler.live_sessions -= 1
            self._report.session_closed(sequence)
        if not self._open:
            self._emptied.set()

    def _fail(self, sequences: Iterable[Sequence], error: ServerError) -> None:
        for sequence in sequences:
            if sequence in self._open:
                self._drop(sequence)
                sequence.sink.fail(sequence, error)

    def _deliver(self, results: list[tuple[Member, Piece]]) -> None:
        for member, piece in results:
            sequence = member.sequence
            if sequence.dropped:
                continue
            if member.final:
                self._forget(sequence)
            try:
                sequence.sink.deliver(sequence, piece)
            except Exception:
                log.exception("a sink failed")

    async def _end_idle_sessions(self) -> None:
        limit = self._config.idle_seconds
        while True:
            await asyncio.sleep(limit / 10)
            now = time.monotonic()
            with self._wake:
                idle = [s for s in self._open if s.op is Op.STREAM and is_idle(s, now, limit)]
            self._fail(idle, ServerError(Reason.SESSION_IDLE, f"nothing came for {limit:g} s: the session was ended"))

    def _serve_device(self) -> None:
        """The device thread: expire, take, run, hand back, for ever."""
        assert self._loop is not None
        failures = 0
        try:
            while True:
                with self._wake:
                    while True:
                        if self._closing:
                            return
                        now = time.monotonic()
                        expired = self._scheduler.expire(now)
                        piece = self._scheduler.next_slice(now)
                        if expired or piece:
                            break
                        self._wake.wait()
                if expired:
                    self._loop.call_soon_threadsafe(self._deliver_expired, expired)
                if piece is not None:
                    failures = 0 if self._run(piece) else failures + 1
                    if failures >= _FAILURES_IN_A_ROW:
                        raise RuntimeError(f"{failures} slices failed in a row")
        except BaseException as error:
            log.critical("the device thread has died", exc_info=True)
            self._loop.call_soon_threadsafe(self._die, error)

    def _run(self, piece: Slice) -> bool:
        """Runs one slice and hands its outcomes back; a failure is its members' alone."""
        assert self._loop is not None
        start = time.monotonic()
        results: list[tuple[Member, Piece]] = []
        failed = False
        try:
            results = runner.run(piece, poison=self._config.poison_slots)
        except Exception:
            log.exception("a slice of %d sequences failed", len(piece.members))
            failed = True
        finally:
            now = time.monotonic()
            with self._wake:
                if failed:
                    for member in piece.members:
                        member.final = True
                self._scheduler.complete(piece, now - start, now)
            if not failed:
                piece.weights.cost.observe(piece.steps, piece.cells, now - start)
                self._report.ran(piece, now - start)
        if failed:
            self._loop.call_soon_threadsafe(self._deliver_failure, [member.sequence for member in piece.members])
        else:
            self._loop.call_soon_threadsafe(self._deliver, results)
        return not failed

    def _deliver_failure(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            if sequence in self._open:
                self._forget(sequence)
                sequence.sink.fail(sequence, ServerError(Reason.INTERNAL, "the batch failed on the device"))

    def _deliver_expired(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            if sequence in self._open:
                self._forget(sequence)
                self._report.cancelled("deadline")
                sequence.sink.fail(
                    sequence, ServerError(Reason.DEADLINE_EXCEEDED, "the deadline passed while the request was queued")
                )

    def _die(self, error: BaseException) -> None:
        self._death = error
        self._fail(list(self._open), ServerError(Reason.ENGINE_DEAD, "the device thread has died"))
        for callback in self._on_death:
            callback()


def _limits(config: ServerConfig, device: str) -> SchedulerLimits:
    return SchedulerLimits(
        max_batch_sequences=config.max_batch_sequences,
        max_batch_steps=config.max_batch_steps,
        slice_seconds=config.max_slice_ms / 1e3,
        bulk_slice_seconds=config.bulk_slice_ms / 1e3,
        max_queue_items=config.max_queue_items,
        max_queue_steps=config.max_queue_steps,
        max_queue_bytes=config.max_queue_bytes,
        max_padding=config.max_padding if device == "cuda" else 1.0,
        shares={Op.STREAM: config.live_share, Op.INFER: config.inference_share},
    )
