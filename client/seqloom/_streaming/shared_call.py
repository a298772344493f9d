"""The StreamInfer call that all sessions of a client share, which sends many sessions' entries in one message.

The call starts with the first session and lasts as long as the client. If it breaks, or its server is going away, the
next session starts another call. Sessions that can be resumed go on there; others fail with the call.
"""

import asyncio
import collections
import contextlib
import copy
import itertools
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import TypeAlias, TypeVar

import grpc

from seqloom import wire
from seqloom._config import MESSAGE_BYTES
from seqloom._streaming.call_pauses import CallPauses
from seqloom._streaming.deadline_timer import DeadlineTimer
from seqloom._streaming.live_session import LiveSession
from seqloom._streaming.outgoing_entry import Entry
from seqloom._streaming.session import INITIAL_WINDOW, CallSession, EntryQueue, Session
from seqloom._streaming.stream_budget import StreamBudget
from seqloom._streaming.throttle import Throttle
from seqloom._streaming.whole_session import WholeSession
from seqloom.errors import Cancelled, DeadlineExceeded, Internal, SeqloomError, Unavailable, from_transport
from seqloom.tensors import Array
from seqloom.types import ModelSpec, Outputs
from seqloom.v1 import inference_service_pb2

StreamCall = grpc.aio.StreamStreamCall[bytes, inference_service_pb2.StreamInferResponse]

SessionKind: TypeAlias = "tuple[ModelSpec, Outputs]"
"""What the server computes the size of a session's window from."""

_MAX_ENTRIES = 4096  # in one message
_FEW_ENTRIES = 64
_CLOSE_SECONDS = 1.0  # how long the server may take to end a call that the client has ended


class OpensGroup(CallSession):
    """A stream group, as this call needs it."""

    @abstractmethod
    def open(self, message: inference_service_pb2.OpenGroup, deadline: float) -> None:
        """Opens the group, unless the deadline passes before it can be sent."""

    @abstractmethod
    def take(self, entry: inference_service_pb2.GroupResponse) -> None:
        """Handles a response of the server for this group."""


Group = TypeVar("Group", bound=OpensGroup)
Live = TypeVar("Live", bound=LiveSession)


class SharedCall:
    """Opens the sessions of one client on one call. Belongs to one event loop."""

    def __init__(self, start_call: Callable[[], StreamCall]) -> None:
        self._start_call = start_call
        self._call: _OpenCall | None = None
        self._windows: dict[SessionKind, int] = {}  # the last that the server sent for this kind of session
        self._budget = StreamBudget()
        self._closed = False
        self._leaving: set[_OpenCall] = set()  # whose server is going away, as long as they last
        self._timer = DeadlineTimer()
        self._numbers = itertools.count(1)  # of sessions, on any call
        self.pauses = CallPauses()
        self._throttles: dict[str, Throttle] = {}

    def throttle(self, model: str) -> Throttle:
        """Returns the throttle of whole sequences of a model."""
        throttle = self._throttles.get(model)
        if throttle is None:
            throttle = self._throttles[model] = Throttle()
        return throttle

    def new_whole_session(
        self,
        kind: SessionKind,
        frames: Array,
        deadline: float,
        *,
        frames_name: str,
        answered: Callable[[SeqloomError | None], None],
    ) -> WholeSession:
        """Returns a session of a whole sequence that is not opened yet. kind: determines the size of its window."""
        call = self._open_call()
        window = self._windows.get(kind, INITIAL_WINDOW)
        session = WholeSession(
            call, next(self._numbers), window, frames, deadline, frames_name=frames_name, answered=answered
        )
        call.add(session)
        return session

    async def open_session(
        self,
        message: inference_service_pb2.OpenSession,
        kind: SessionKind,
        deadline: float,
        make: Callable[[EntryQueue, int, int, StreamBudget], Live],
    ) -> Live:
        """Opens a live session, waiting for the server. Raises DeadlineExceeded and the server's errors.

        make: returns it, by its call, its number and its window.
        """
        call = self._open_call()
        session = make(call, next(self._numbers), self._windows.get(kind, INITIAL_WINDOW), self._budget)
        call.add(session)
        session.open(message, deadline)
        await _opened(session, deadline)
        self.remember_window(kind, session)
        return session

    async def open_group(
        self,
        make: Callable[[EntryQueue, int, StreamBudget], Group],
        message: inference_service_pb2.OpenGroup,
        deadline: float,
    ) -> Group:
        """Opens a group, waiting for the server. make: returns it, by its number. Raises as open_session()."""
        call = self._open_call()
        group = make(call, next(self._numbers), self._budget)
        call.add(group)
        group.open(message, deadline)
        await _opened(group, deadline)
        return group

    def attach(self, session: CallSession) -> None:
        """Lets a session or a group that was lost go on on the present call, or on a new one."""
        call = self._open_call()
        session.move_to(call, next(self._numbers))
        call.add(session)

    def remember_window(self, kind: SessionKind, session: Session) -> None:
        """Remembers the window of an opened session for the next session of its kind."""
        self._windows[kind] = session.window

    async def close(self) -> None:
        """Ends the call; open sessions fail with Cancelled."""
        self._closed = True
        self.pauses.close(Cancelled("the client is closed", reason="CLIENT_CLOSED"))
        for call in [*self._leaving, self._call]:
            if call is not None:
                await call.close()
        self._timer.stop()

    def _open_call(self) -> "_OpenCall":
        if self._closed:
            raise Cancelled("the client is closed", reason="CLIENT_CLOSED")
        call = self._call
        if call is None or call.broken or call.leaving:
            self._leaving = {each for each in self._leaving if not each.broken}
            if call is not None and not call.broken:
                self._leaving.add(call)
            self._windows.clear()
            call = self._call = _OpenCall(self._start_call(), self._timer, self.pauses)
        return call


async def _opened(session: CallSession, deadline: float) -> None:
    """Waits until the server has opened a session or a group. Raises DeadlineExceeded and the server's errors."""
    try:
        await session.wait(lambda: session.weights_version > 0, deadline)
    except BaseException as error:  # also if it was opened at the same moment: nobody would ever end it
        session.cancel(Cancelled("opening the stream was cancelled", reason="CANCELLED"))
        if isinstance(error, TimeoutError):
            raise DeadlineExceeded("the server did not respond before the timeout", reason="TIMEOUT") from None
        raise


class _OpenCall:
    """One gRPC call, with a task that writes queued entries and a task that reads responses."""

    def __init__(self, call: StreamCall, timer: DeadlineTimer, pauses: CallPauses) -> None:
        self.broken = False
        self.leaving = False  # its server is going away
        self.timer = timer
        self._pauses = pauses
        self._call = call
        self._sessions: dict[int, Session] = {}
        self._groups: dict[int, OpensGroup] = {}
        self._outbox: collections.deque[Entry] = collections.deque()
        self._look_at = _FEW_ENTRIES  # entries, at which those that will not be written are dropped
        self._wake = asyncio.Event()
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    def add(self, session: CallSession) -> None:
        if isinstance(session, OpensGroup):
            self._groups[session.number] = session
        elif isinstance(session, Session):
            self._sessions[session.number] = session

    def put(self, entry: Entry) -> None:
        """Queues an entry for the next message."""
        if entry.cancel:
            self._sessions.pop(entry.number, None)
            self._groups.pop(entry.number, None)
            if not entry.session.opened:
                return  # the server never hears of it, as what fails before it is written is not written
        if self.broken:
            entry.release_budget()
            return
        self._outbox.append(entry)
        if len(self._outbox) >= self._look_at:
            self._drop_dead_entries()
        self._wake.set()

    def leave(self) -> None:
        self.leaving = True

    async def close(self) -> None:
        """Ends the call; open sessions fail with Cancelled."""
        quiet = not self._sessions and not self._groups and not self.broken
        self._fail(Cancelled("the client is closed", reason="CLIENT_CLOSED"))
        if quiet:  # so that the server does not count the call as cancelled
            ended = grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError, TimeoutError
            with contextlib.suppress(*ended):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._call.done_writing()
                    await asyncio.wait(self._tasks[1:])
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._call.cancel()

    async def _write(self) -> None:
        try:
            while True:
                while self._outbox:
                    if message := self._next_message():
                        await self._call.write(message)
                self._wake.clear()
                await self._wake.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the reader finds out why the call ended
        except Exception as bug:
            self._fail(Internal(f"a message could not be sent: {bug!r}", reason="UNSENT"))
            self._call.cancel()

    async def _read(self) -> None:
        error: SeqloomError
        try:
            while True:
                message = await self._call.read()
                if not isinstance(message, inference_service_pb2.StreamInferResponse):  # grpc.aio.EOF
                    break
                self._pauses.answered()
                for entry in message.entries:
                    self._take(entry)
                for group in message.groups:
                    self._take_group(group)
            code = await self._call.code()
            error = Unavailable(f"the server ended the call ({code.name})", reason="CALL_ENDED")
        except asyncio.CancelledError:
            error = Cancelled("the call was cancelled", reason="CANCELLED")
            raise
        except Exception as failed:
            found = from_transport(failed)
            if found is None:  # a message of another protocol
                found = Internal(
                    f"the server sent a message that cannot be decoded: {failed!r}", reason="MALFORMED_REPLY"
                )
                self._call.cancel()
            error = found
        finally:
            self._pauses.broken()
            self._fail(error)
            self._tasks[0].cancel()

    def _take(self, entry: inference_service_pb2.SessionResponse) -> None:
        """Handles a response; the reader itself holds no session, with its frames, while it waits for the next."""
        session = self._sessions.get(entry.session)
        if session is not None:
            session.take(entry)
            if session.ended or session.number != entry.session:  # or it goes on elsewhere
                self._sessions.pop(entry.session, None)
                session.closed()

    def _take_group(self, entry: inference_service_pb2.GroupResponse) -> None:
        group = self._groups.get(entry.group)
        if group is not None:
            group.take(entry)
            if group.ended or group.number != entry.group:
                self._groups.pop(entry.group, None)
                group.closed()

    def _fail(self, error: SeqloomError) -> None:
        self.broken = True
        sessions: list[CallSession] = [*self._sessions.values(), *self._groups.values()]
        self._sessions, self._groups = {}, {}
        for session in sessions:
            session.fail(copy.copy(error))  # each copy gets its own traceback
        while self._outbox:
            self._outbox.popleft().release_budget()

    def _drop_dead_entries(self) -> None:
        """Drops entries of sessions that have failed: while nothing can be written, they would keep their frames."""
        kept: collections.deque[Entry] = collections.deque()
        for entry in self._outbox:
            if entry.is_dead:
                entry.release_budget()
            else:
                kept.append(entry)
        self._outbox, self._look_at = kept, 2 * len(kept) + _FEW_ENTRIES

    def _next_message(self) -> bytes:
        """Returns an encoded StreamInferRequest of the next entries; b"" if nobody waits for any of them."""
        parts: wire.Buffers = []
        entries, room, now = 0, MESSAGE_BYTES, time.monotonic()
        while self._outbox and entries < _MAX_ENTRIES:
            size = self._outbox[0].size
            if size > room and entries:
                break
            entry = self._outbox.popleft()
            entry.release_budget()
            session = entry.session
            if entry.deadline <= now and not session.failure:  # and its caller could not be told yet
                session.cancel(DeadlineExceeded("the timeout passed before the request was sent", reason="TIMEOUT"))
            if entry.is_dead:
                continue
            session.opened = session.opened or entry.opens
            parts += entry.buffers(now)
            room -= size
            entries += 1
        return wire.joined(parts)
