"""One StreamInfer call: its sessions by the caller's numbers, what goes into the engine, and what comes back out."""

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.rpc import code_pb2
from seqloom.v1 import inference_service_pb2

from seqloom_server.config import ServerConfig
from seqloom_server.engine.core.sequence import Chunk, Op
from seqloom_server.engine.core.session_window import SessionWindow, empty_frames
from seqloom_server.engine.engine import Engine
from seqloom_server.errors import Reason, ServerError, invalid
from seqloom_server.rpc.calls import converters
from seqloom_server.rpc.calls.byte_budget import ByteBudget
from seqloom_server.rpc.calls.interceptors import request_id
from seqloom_server.rpc.calls.request_metrics import RequestMetrics
from seqloom_server.rpc.calls.status import status_of
from seqloom_server.rpc.inference.outbox import Outbox, Outgoing
from seqloom_server.rpc.inference.stream_session import StreamSession, only_acknowledges

log = logging.getLogger(__name__)

_METHOD = "seqloom.v1.InferenceService/StreamInfer/session"  # what sessions are counted as

_MIN_WINDOW_STEPS = 64  # what a caller may send before it has been told its window
_WINDOW_BYTES = 8 << 20  # of outputs that one session may leave unread
_MAX_ENTRIES = 16_384  # in one message, each of which may be answered by an error
_REMEMBERED = 4096  # sessions that are over, so that what still comes for them is told from what is wrong


class StreamCall:
    """The sessions of one call. `read_from` takes messages, `write_to` sends until the call is over."""

    def __init__(
        self, engine: Engine, config: ServerConfig, request_metrics: RequestMetrics, budget: ByteBudget
    ) -> None:
        self._engine = engine
        self._config = config
        self._request_metrics = request_metrics
        self._sinks: dict[int, StreamSession] = {}
        self._over: OrderedDict[int, bool] = OrderedDict()  # by number: whether the caller has been told of an error
        self._outbox = Outbox(config.max_stream_message_bytes, budget)
        self._half_closed = False
        self._draining = False
        self._failure: Exception | None = None
        self._request_id = request_id()

    async def read_from(self, requests: AsyncIterator[inference_service_pb2.StreamInferRequest]) -> None:
        """Takes messages until the caller sends no more. What is no message of ours ends the call, by `write_to`."""
        try:
            async for request in requests:
                await self._receive(request)
                if self._outbox.full:
                    await self._outbox.has_room()
            self._half_close()
        except Exception as error:
            self._failure = error
        self._outbox.changed.set()

    async def write_to(self, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        """Sends what is due, as long as there is or may come something. Raises what ended the call."""
        while True:
            while self._outbox and self._failure is None:
                await context.write(self._outbox.next_message())
            if self._failure is not None:
                raise self._failure
            if not self._sinks and self._half_closed:
                return
            if not self._sinks and self._draining:
                raise ServerError(Reason.SHUTTING_DOWN, "the server is shutting down")
            self._outbox.changed.clear()
            await self._outbox.changed.wait()

    def drain(self) -> None:
        """The server shuts down: the call ends when its last session has."""
        self._draining = True
        self._outbox.changed.set()

    def close(self) -> None:
        """Drops whatever is still open."""
        for number in list(self._sinks):
            self._drop(number)
        self._outbox.clear()

    def send(self, outgoing: Outgoing) -> None:
        self._outbox.put(outgoing)

    def promise(self, size: int) -> None:
        self._outbox.promise(size)

    def fail(self, number: int, error: ServerError) -> None:
        """Tells the caller that this session has failed; it is gone, and what still comes for it is passed over."""
        status = status_of(error, self._request_id)
        self._gone(number, code_pb2.Code.Name(status.code))
        if error.reason is Reason.INTERNAL:  # its traceback was logged where it happened
            log.error("request %s: session %d: %s", self._request_id, number, error)
        self.send(Outgoing(number, error=status))

    def ended(self, number: int) -> None:
        self._gone(number, "OK")

    async def _receive(self, request: inference_service_pb2.StreamInferRequest) -> None:
        """Takes a message; what is wrong with an entry fails that entry's session alone."""
        if len(request.entries) > _MAX_ENTRIES:
            raise ServerError(
                Reason.OVER_LIMIT,
                f"entries: has {len(request.entries)}: at most {_MAX_ENTRIES} are taken in a message",
                field="entries",
            )
        now = time.monotonic()
        work: dict[StreamSession, list[Chunk]] = {}
        for entry in request.entries:
            if self._outbox.full:  # one message may ask for more than there is memory
                self._feed(work)
                work.clear()
                await self._outbox.has_room()
                now = time.monotonic()
            number = entry.session
            if entry.cancel:
                self._drop(number)
                continue
            try:
                sink = self._open(entry, now) if entry.HasField("open") else self._sinks.get(number)
                if sink is None:
                    self._check_late(entry)
                    continue
                chunks = work.setdefault(sink, [])
                chunks += sink.chunks(entry, now, len(chunks))
            except ServerError as error:
                if number in self._sinks:
                    self._engine.cancel([self._sinks[number].session.sequence])
                self.fail(number, error)
        self._feed(work)

    def _half_close(self) -> None:
        """The caller sends nothing more: sessions that it left open end after what is queued."""
        self._half_closed = True
        now = time.monotonic()
        left_open = [sink for sink in self._sinks.values() if not sink.session.ended]
        end = inference_service_pb2.SessionRequest(end=True)
        self._feed({sink: sink.chunks(end, now, 0) for sink in left_open})

    def _feed(self, work: dict[StreamSession, list[Chunk]]) -> None:
        items = [(sink.session.sequence, chunks) for sink, chunks in work.items() if chunks]
        for sequence, error in self._engine.feed(items) if items else ():
            sequence.sink.fail(sequence, error)

    def _check_late(self, entry: inference_service_pb2.SessionRequest) -> None:
        """An entry for a session that is not open: no matter where it only acknowledges, or crossed an error."""
        reported = self._over.get(entry.session)
        if reported or only_acknowledges(entry):
            return
        if reported is None:
            raise ServerError(
                Reason.SESSION_NOT_OPEN,
                f"session {entry.session} is not open: the first entry of a session has `open`",
                field="entries.open",
            )
        raise ServerError(Reason.SESSION_ENDED, f"session {entry.session} has ended: it takes nothing more")

    def _open(self, entry: inference_service_pb2.SessionRequest, now: float) -> StreamSession:
        number, wanted = entry.session, entry.open
        if number in self._sinks:
            raise ServerError(
                Reason.SESSION_EXISTS, f"session {number} is open already: it has been dropped", field="entries.session"
            )
        weights = self._engine.registry.current(wanted.model, wanted.weights_version)
        spec = weights.network.spec
        output = converters.output_spec(wanted.output, spec, "entries.open.output")
        initial = None
        if wanted.HasField("initial_state"):
            initial = converters.state(wanted.initial_state, spec, 1, "entries.open.initial_state")
        timeout = converters.timeout(wanted.timeout_seconds, "entries.open.timeout_seconds")
        whole = wanted.whole_sequence or (entry.HasField("frames") and entry.end)
        if spec.bidirectional:
            _check_whole(wanted, whole)
        sink = StreamSession(self, number, spec, output)
        sequence = self._engine.open(
            weights,
            Op.INFER if whole else Op.STREAM,
            output,
            sink,
            initial_state=initial,
            deadline=None if timeout is None else now + timeout,
            snapshot_interval=wanted.snapshot_interval_steps,
        )
        if wanted.snapshot_interval_steps:
            sink.step_bytes += converters.state_bytes(spec) // wanted.snapshot_interval_steps
        window = min(self._config.window_steps, _WINDOW_BYTES // sink.step_bytes)
        window = max(window, _MIN_WINDOW_STEPS)
        if spec.bidirectional:  # nothing can be acknowledged before all is there; one more, so that too much is told
            window = converters.max_steps(spec, self._config) + 1
        sink.session = SessionWindow(sequence, window, empty_frames(spec.input_size, spec.dtype))
        sink.model, sink.opened_at = weights.model, now
        sink.max_steps = converters.max_steps(spec, self._config) if whole else None
        self._sinks[number] = sink
        self._over.pop(number, None)
        sink.opened = weights.version, window
        if not entry.end:  # else it travels with the first output
            self.send(sink.outgoing())
        return sink

    def _drop(self, number: int) -> None:
        """The caller no longer wants the session."""
        sink = self._sinks.pop(number, None)
        if sink is not None:
            self._engine.cancel([sink.session.sequence])
            self._outbox.withdraw(sink.promised)
            self._count(sink, "CANCELLED")
            self._outbox.changed.set()

    def _gone(self, number: int, code: str) -> None:
        sink = self._sinks.pop(number, None)
        self._count(sink, code)
        if sink is not None:
            self._outbox.withdraw(sink.promised)
        self._over[number] = code != "OK"
        if len(self._over) > _REMEMBERED:
            self._over.popitem(last=False)

    def _count(self, sink: StreamSession | None, code: str) -> None:
        model, seconds = ("", None) if sink is None else (sink.model, time.monotonic() - sink.opened_at)
        self._request_metrics.count(_METHOD, model, code, seconds)


def _check_whole(wanted: inference_service_pb2.OpenSession, whole: bool) -> None:
    """What a session of a bidirectional model may be: its layers also run from the last step to the first."""
    if not whole:
        raise invalid(
            "entries.open.whole_sequence", "is not set: the model is bidirectional, only whole sequences can be run"
        )
    if wanted.snapshot_interval_steps:
        raise invalid(
            "entries.open.snapshot_interval_steps",
            f"is {wanted.snapshot_interval_steps}: the model is bidirectional, only whole sequences can be run",
        )
