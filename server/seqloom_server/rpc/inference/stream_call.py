"""One StreamInfer call: its sessions by number, their frames into the engine, and their outputs to the caller."""

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from typing import TypeAlias

from google.rpc import code_pb2, status_pb2
from seqloom.v1 import inference_service_pb2

from seqloom_server.config import ServerConfig
from seqloom_server.engine.core.sequence import Chunk
from seqloom_server.engine.engine import Engine
from seqloom_server.errors import Reason, ServerError, invalid, over_limit
from seqloom_server.rpc.calls.byte_budget import ByteBudget
from seqloom_server.rpc.calls.interceptors import Context, request_id
from seqloom_server.rpc.calls.request_metrics import RequestMetrics
from seqloom_server.rpc.calls.status import status_of
from seqloom_server.rpc.inference import group_session, stream_session
from seqloom_server.rpc.inference.group_outgoing import GroupOutgoing
from seqloom_server.rpc.inference.group_session import GroupSession
from seqloom_server.rpc.inference.openings import Openings
from seqloom_server.rpc.inference.outbox import Entry, Outbox
from seqloom_server.rpc.inference.outgoing import Outgoing
from seqloom_server.rpc.inference.stream_session import StreamSession
from seqloom_server.rpc.security.token_use import TokenUse

log = logging.getLogger(__name__)

# the method's names for sessions and groups in the metrics
_METHOD = "seqloom.v1.InferenceService/StreamInfer/session"
_GROUP_METHOD = "seqloom.v1.InferenceService/StreamInfer/group"

AnySession: TypeAlias = StreamSession | GroupSession
Request: TypeAlias = inference_service_pb2.SessionRequest | inference_service_pb2.GroupRequest

_MAX_ENTRIES = 16_384  # in one message, each of which may be answered by an error
_MAX_ENDED_SESSIONS = 4096  # remembered, to tell entries that crossed a session's end from wrong ones


class StreamCall:
    """The sessions of one call. `read_from` receives messages, `write_to` sends until the call ends.

    use: what the caller's token uses, None without a token.
    """

    def __init__(
        self,
        engine: Engine,
        config: ServerConfig,
        request_metrics: RequestMetrics,
        budget: ByteBudget,
        caller: str,
        use: TokenUse | None = None,
    ) -> None:
        self._engine = engine
        self._config = config
        self._request_metrics = request_metrics
        self._sessions: dict[int, AnySession] = {}
        self._ended: OrderedDict[int, bool] = OrderedDict()  # by number: whether the session ended with an error
        self._openings = Openings(engine, config, self, caller, use)
        self._use = use
        self._outbox = Outbox(config.max_stream_message_bytes, budget, caller)
        self._half_closed = False
        self._draining = False
        self._failure: Exception | None = None
        self._request_id = request_id()

    async def read_from(self, requests: AsyncIterator[inference_service_pb2.StreamInferRequest]) -> None:
        """Receives messages until the caller closes the stream; `write_to` raises the error of a malformed one."""
        try:
            async for request in requests:
                if self._use is not None and self._use.ahead() > 0 and _goes_on(request):
                    await self._use.wait_for_steps()  # HTTP/2 then stops the caller
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
        """Ends the call as soon as it has no session, and tells live ones: the server is shutting down."""
        self._draining = True
        now = time.monotonic()
        self._feed({session: session.leaving(now) for session in self._sessions.values()}, now)
        self._outbox.changed.set()

    def close(self) -> None:
        """Drops the sessions that are still open. If they were lost, they may come again for their weights."""
        for weights in {session.window.sequence.weights for session in self._sessions.values() if session.live}:
            self._engine.registry.keep(weights)
        for number in list(self._sessions):
            self._drop(number)
        self._outbox.clear()

    def send(self, outgoing: Entry) -> None:
        self._outbox.put(outgoing)

    def promise(self, size: int, *, live: bool) -> None:
        self._outbox.promise(size, live=live)

    def withdraw(self, size: int, *, live: bool) -> None:
        self._outbox.withdraw(size, live=live)

    def status(self, error: ServerError) -> status_pb2.Status:
        return status_of(error, self._request_id)

    def fail(self, number: int, error: ServerError, *, group: bool = False) -> None:
        """Ends a session with an error; its later entries are ignored. group: whether one was to be opened."""
        session = self._sessions.get(number)
        if session is not None:
            group = isinstance(session, GroupSession)
        status = self.status(error)
        self._remove(number, code_pb2.Code.Name(status.code), group=group)
        if error.reason is Reason.INTERNAL:  # its traceback was logged where it happened
            log.error("request %s: session %d: %s", self._request_id, number, error)
        self.send(GroupOutgoing(number, error=status) if group else Outgoing(number, error=status))

    def ended(self, number: int) -> None:
        self._remove(number, "OK")

    async def _receive(self, request: inference_service_pb2.StreamInferRequest) -> None:
        """Handles one message; an invalid entry fails only that entry's session."""
        count = len(request.entries) + len(request.groups)
        if count > _MAX_ENTRIES:
            raise over_limit("entries", f"has {count}: expected at most {_MAX_ENTRIES} in a message")
        now = time.monotonic()
        refuses = self._engine.refuses(now)
        work: dict[AnySession, list[Chunk]] = {}
        for number, entry in _numbered(request):
            if self._outbox.full:  # the outputs of one message may need more memory than there is
                self._feed(work, now)
                work.clear()
                await self._outbox.has_room()
                now = time.monotonic()
            if entry.cancel:
                self._drop(number)
                continue
            try:
                opens = entry.HasField("open")
                session = self._open(number, entry, now, refuses) if opens else self._sessions.get(number)
                if session is None:
                    self._check_late(number, entry)
                    continue
                chunks = work.setdefault(session, [])
                new = self._chunks(session, entry, now, len(chunks))
                if self._use is not None and self._use.limits_steps:
                    self._use.add_steps(sum(chunk.cells for chunk in new))
                chunks += new
            except ServerError as error:
                self._refuse(number, error, now, group=_is_of_group(entry))
        self._feed(work, now)

    def _half_close(self) -> None:
        """Ends the open sessions after their queued frames: the caller has closed the stream."""
        self._half_closed = True
        now = time.monotonic()
        left_open = [(number, session) for number, session in self._sessions.items() if not session.window.ended]
        work: dict[AnySession, list[Chunk]] = {}
        for number, session in left_open:
            try:
                work[session] = session.ending(now)
            except ServerError as error:
                self._refuse(number, error, now)
        self._feed(work, now)

    def _refuse(self, number: int, error: ServerError, received: float, *, group: bool = False) -> None:
        """Ends a session because of an entry that was received then, whether the session is open yet or not."""
        if number in self._sessions:
            self._engine.cancel([self._sessions[number].window.sequence])
        self._request_metrics.rejected(error, time.monotonic() - received)
        self.fail(number, error, group=group)

    def _feed(self, work: dict[AnySession, list[Chunk]], received: float) -> None:
        items = [(session.window.sequence, chunks) for session, chunks in work.items() if chunks]
        for sequence, error in self._engine.feed(items) if items else ():
            self._request_metrics.rejected(error, time.monotonic() - received)
            sequence.sink.fail(sequence, error)

    def _check_late(self, number: int, entry: Request) -> None:
        """Raises for an entry of a session that is not open, unless it only acknowledges or crossed an error."""
        reported = self._ended.get(number)
        if reported or _only_acknowledges(entry):
            return
        if reported is None:
            raise ServerError(
                Reason.SESSION_NOT_OPEN,
                f"session {number} is not open: expected `open` in a session's first entry",
                field="groups.open" if _is_of_group(entry) else "entries.open",
            )
        raise ServerError(Reason.SESSION_ENDED, f"session {number} has ended: expected no more entries for it")

    def _open(self, number: int, entry: Request, now: float, refuses: bool) -> AnySession:
        """Opens a session or a group. refuses: whether others were refused a moment ago. Raises ServerError."""
        if number in self._sessions:
            field = "groups.group" if _is_of_group(entry) else "entries.session"
            raise ServerError(Reason.SESSION_EXISTS, f"session {number} is open already: it was dropped", field=field)
        session: AnySession
        if isinstance(entry, inference_service_pb2.GroupRequest):
            session = self._openings.group(entry, now)
        else:
            session = self._openings.session(entry, now, refuses=refuses)
        self._sessions[number] = session
        self._ended.pop(number, None)
        if not entry.end:  # else it is sent with the first output
            self.send(session.outgoing())
        return session

    @staticmethod
    def _chunks(session: AnySession, entry: Request, now: float, unfed: int) -> list[Chunk]:
        """Returns the chunks of an entry of a session. Raises ServerError."""
        if isinstance(session, GroupSession):
            if isinstance(entry, inference_service_pb2.GroupRequest):
                return session.chunks(entry, now)
            raise invalid("entries.session", f"is {entry.session}, which is a group: expected a session")
        if isinstance(entry, inference_service_pb2.SessionRequest):
            return session.chunks(entry, now, unfed)
        raise invalid("groups.group", f"is {entry.group}, which is a session: expected a group")

    def _drop(self, number: int) -> None:
        """Cancels a session without an error."""
        session = self._sessions.pop(number, None)
        if session is not None:
            self._engine.cancel([session.window.sequence])
            self._release(session)
            self._count(session, "CANCELLED")
            self._outbox.changed.set()

    def _remove(self, number: int, code: str, *, group: bool = False) -> None:
        session = self._sessions.pop(number, None)
        self._count(session, code, group=group)
        if session is not None:
            self._release(session)
        self._ended[number] = code != "OK"
        if len(self._ended) > _MAX_ENDED_SESSIONS:
            self._ended.popitem(last=False)

    def _release(self, session: AnySession) -> None:
        """Returns what a session that is gone was charged for."""
        self.withdraw(session.promised, live=session.live)
        self._openings.release(session)
        if isinstance(session, GroupSession):
            session.drop_parts()

    def _count(self, session: AnySession | None, code: str, *, group: bool = False) -> None:
        model, seconds = ("", None) if session is None else (session.model, time.monotonic() - session.opened_at)
        method = _GROUP_METHOD if group or isinstance(session, GroupSession) else _METHOD
        self._request_metrics.count(method, model, code, seconds)


def _numbered(request: inference_service_pb2.StreamInferRequest) -> Iterator[tuple[int, Request]]:
    """Yields the entries of a message with the numbers of their sessions."""
    for entry in request.entries:
        yield entry.session, entry
    for group in request.groups:
        yield group.group, group


def _goes_on(request: inference_service_pb2.StreamInferRequest) -> bool:
    """Returns whether a message has frames of what is not refused for the token's steps a second: of all but new whole
    sequences."""
    for _, entry in _numbered(request):
        if entry.HasField("frames"):
            if isinstance(entry, inference_service_pb2.GroupRequest) or not entry.HasField("open"):
                return True
            if not (entry.end or entry.open.whole_sequence):
                return True
    return False


def _only_acknowledges(entry: Request) -> bool:
    """Returns whether an entry, which neither opens nor cancels a session, only acknowledges steps."""
    if isinstance(entry, inference_service_pb2.GroupRequest):
        return group_session.only_acknowledges(entry)
    return stream_session.only_acknowledges(entry)


def _is_of_group(entry: Request) -> bool:
    return isinstance(entry, inference_service_pb2.GroupRequest)
