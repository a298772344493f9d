"""One StreamInfer call: its sessions by number, their frames into the engine, and their outputs to the caller."""

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator

from google.rpc import code_pb2
from seqloom.v1 import inference_service_pb2

from seqloom_server.config import ServerConfig
from seqloom_server.engine.core.sequence import Chunk, Op
from seqloom_server.engine.core.session_window import SessionWindow, empty_frames
from seqloom_server.engine.engine import Engine
from seqloom_server.errors import Reason, ServerError, over_limit
from seqloom_server.rpc.calls.byte_budget import ByteBudget
from seqloom_server.rpc.calls.interceptors import Context, request_id
from seqloom_server.rpc.calls.request_metrics import RequestMetrics
from seqloom_server.rpc.calls.status import status_of
from seqloom_server.rpc.inference.outbox import Outbox, Outgoing
from seqloom_server.rpc.inference.session_opening import SessionOpening, shown_steps
from seqloom_server.rpc.inference.stream_session import StreamSession, only_acknowledges

log = logging.getLogger(__name__)

_METHOD = "seqloom.v1.InferenceService/StreamInfer/session"  # the method's name for sessions in the metrics

_MAX_ENTRIES = 16_384  # in one message, each of which may be answered by an error
_MAX_ENDED_SESSIONS = 4096  # remembered, to tell entries that crossed a session's end from wrong ones


class StreamCall:
    """The sessions of one call. `read_from` receives messages, `write_to` sends until the call ends."""

    def __init__(
        self, engine: Engine, config: ServerConfig, request_metrics: RequestMetrics, budget: ByteBudget, caller: str
    ) -> None:
        self._engine = engine
        self._config = config
        self._request_metrics = request_metrics
        self._sessions: dict[int, StreamSession] = {}
        self._ended: OrderedDict[int, bool] = OrderedDict()  # by number: whether the session ended with an error
        self._caller = caller
        self._outbox = Outbox(config.max_stream_message_bytes, budget, caller)
        self._half_closed = False
        self._draining = False
        self._failure: Exception | None = None
        self._request_id = request_id()

    async def read_from(self, requests: AsyncIterator[inference_service_pb2.StreamInferRequest]) -> None:
        """Receives messages until the caller closes the stream; `write_to` raises the error of a malformed one."""
        try:
            async for request in requests:
                await self._receive(request)
                if self._outbox.full:
                    await self._outbox.has_room()
            self._half_close()
        except Exception as error:
            self._failure = error
        self._outbox.changed.set()

    async def write_to(self, context: Context) -> None:
        """Sends entries until the call ends, with or without an error, which it raises."""
        while True:
            while self._outbox and self._failure is None:
                await context.write(self._outbox.next_message())
            if self._failure is not None:
                raise self._failure
            if not self._sessions and self._half_closed:
                return
            if not self._sessions and self._draining:
                raise ServerError(Reason.SHUTTING_DOWN, "the server is shutting down")
            self._outbox.changed.clear()
            await self._outbox.changed.wait()

    def drain(self) -> None:
        """Ends the call as soon as it has no session: the server is shutting down."""
        self._draining = True
        self._outbox.changed.set()

    def close(self) -> None:
        """Drops the sessions that are still open."""
        for number in list(self._sessions):
            self._drop(number)
        self._outbox.clear()

    def send(self, outgoing: Outgoing) -> None:
        self._outbox.put(outgoing)

    def promise(self, size: int, *, live: bool) -> None:
        self._outbox.promise(size, live=live)

    def fail(self, number: int, error: ServerError) -> None:
        """Ends a session with an error; its later entries are ignored."""
        status = status_of(error, self._request_id)
        self._remove(number, code_pb2.Code.Name(status.code))
        if error.reason is Reason.INTERNAL:  # its traceback was logged where it happened
            log.error("request %s: session %d: %s", self._request_id, number, error)
        self.send(Outgoing(number, error=status))

    def ended(self, number: int) -> None:
        self._remove(number, "OK")

    async def _receive(self, request: inference_service_pb2.StreamInferRequest) -> None:
        """Handles one message; an invalid entry fails only that entry's session."""
        if len(request.entries) > _MAX_ENTRIES:
            raise over_limit("entries", f"has {len(request.entries)}: expected at most {_MAX_ENTRIES} in a message")
        now = time.monotonic()
        refuses = self._engine.refuses(now)
        work: dict[StreamSession, list[Chunk]] = {}
        for entry in request.entries:
            if self._outbox.full:  # the outputs of one message may need more memory than there is
                self._feed(work, now)
                work.clear()
                await self._outbox.has_room()
                now = time.monotonic()
            number = entry.session
            if entry.cancel:
                self._drop(number)
                continue
            try:
                session = self._open(entry, now, refuses) if entry.HasField("open") else self._sessions.get(number)
                if session is None:
                    self._check_late(entry)
                    continue
                chunks = work.setdefault(session, [])
                chunks += session.chunks(entry, now, len(chunks))
            except ServerError as error:
                self._refuse(number, error, now)
        self._feed(work, now)

    def _half_close(self) -> None:
        """Ends the open sessions after their queued frames: the caller has closed the stream."""
        self._half_closed = True
        now = time.monotonic()
        left_open = [(number, session) for number, session in self._sessions.items() if not session.window.ended]
        end = inference_service_pb2.SessionRequest(end=True)
        work: dict[StreamSession, list[Chunk]] = {}
        for number, session in left_open:
            try:
                work[session] = session.chunks(end, now, 0)
            except ServerError as error:
                self._refuse(number, error, now)
        self._feed(work, now)

    def _refuse(self, number: int, error: ServerError, received: float) -> None:
        """Ends a session because of an entry that was received then, whether the session is open yet or not."""
        if number in self._sessions:
            self._engine.cancel([self._sessions[number].window.sequence])
        self._request_metrics.rejected(error, time.monotonic() - received)
        self.fail(number, error)

    def _feed(self, work: dict[StreamSession, list[Chunk]], received: float) -> None:
        items = [(session.window.sequence, chunks) for session, chunks in work.items() if chunks]
        for sequence, error in self._engine.feed(items) if items else ():
            self._request_metrics.rejected(error, time.monotonic() - received)
            sequence.sink.fail(sequence, error)

    def _check_late(self, entry: inference_service_pb2.SessionRequest) -> None:
        """Raises for an entry of a session that is not open, unless it only acknowledges or crossed an error."""
        reported = self._ended.get(entry.session)
        if reported or only_acknowledges(entry):
            return
        if reported is None:
            raise ServerError(
                Reason.SESSION_NOT_OPEN,
                f"session {entry.session} is not open: expected `open` in a session's first entry",
                field="entries.open",
            )
        raise ServerError(Reason.SESSION_ENDED, f"session {entry.session} has ended: expected no more entries for it")

    def _open(self, entry: inference_service_pb2.SessionRequest, now: float, refuses: bool) -> StreamSession:
        """Opens a session. refuses: whether others were refused a moment ago. Raises ServerError."""
        number, request = entry.session, entry.open
        if number in self._sessions:
            raise ServerError(
                Reason.SESSION_EXISTS, f"session {number} is open already: it was dropped", field="entries.session"
            )
        weights = self._engine.registry.current(request.model, request.weights_version)
        spec = weights.network.spec
        opening = SessionOpening.checked(entry, spec, self._config)
        session = StreamSession(self, number, spec, opening)
        sequence = self._engine.open(
            weights,
            Op.INFER if opening.whole else Op.STREAM,
            opening.output,
            session,
            initial_state=opening.initial_state,
            deadline=None if opening.timeout is None else now + opening.timeout,
            snapshot_interval=opening.snapshot_interval,
            caller=self._caller,
            rate=opening.rate,
            total_steps=opening.total_steps,
            likely_steps=shown_steps(entry, opening) if refuses else 0,
        )
        session.window = SessionWindow(sequence, opening.window_steps, empty_frames(spec.input_size, spec.dtype))
        session.model, session.opened_at = weights.model, now
        self._sessions[number] = session
        self._ended.pop(number, None)
        session.opened = weights.version, opening.window_steps
        if not entry.end:  # else it is sent with the first output
            self.send(session.outgoing())
        return session

    def _drop(self, number: int) -> None:
        """Cancels a session without an error."""
        session = self._sessions.pop(number, None)
        if session is not None:
            self._engine.cancel([session.window.sequence])
            self._outbox.withdraw(session.promised, live=session.live)
            self._count(session, "CANCELLED")
            self._outbox.changed.set()

    def _remove(self, number: int, code: str) -> None:
        session = self._sessions.pop(number, None)
        self._count(session, code)
        if session is not None:
            self._outbox.withdraw(session.promised, live=session.live)
        self._ended[number] = code != "OK"
        if len(self._ended) > _MAX_ENDED_SESSIONS:
            self._ended.popitem(last=False)

    def _count(self, session: StreamSession | None, code: str) -> None:
        model, seconds = ("", None) if session is None else (session.model, time.monotonic() - session.opened_at)
        self._request_metrics.count(_METHOD, model, code, seconds)
