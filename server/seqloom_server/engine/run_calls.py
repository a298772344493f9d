"""The numbered calls on one run: each is done once, in its turn, and its reply is kept for whoever asks again."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from seqloom_server.engine import replies
from seqloom_server.engine.call_order import CallOrder
from seqloom_server.engine.replies import Reply
from seqloom_server.errors import Reason, ServerError, invalid

_MAX_CLIENTS = 4096
_MAX_REPLIES = 1024  # of one client, that it has not acknowledged
_MAX_ID = 64
_HOLD_SECONDS = 60.0  # for which a call waits for earlier ones

Begin = Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class CallId:
    """Which call on a run this is.

    acknowledged: the caller has the replies up to this one. step: of a call that is sent again after a restart, the
    step that its reply had named; 0 if none came.
    """

    client: str
    number: int
    acknowledged: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        if not (0 < len(self.client) <= _MAX_ID and self.client.isascii() and self.client.isalnum()):
            raise invalid("call.client", f"is {self.client[:80]!r}: expected 1 to {_MAX_ID} ASCII letters and digits")
        if self.number < 1:
            raise invalid("call.number", f"is {self.number}: expected at least 1")
        if self.acknowledged >= self.number:
            raise invalid("call.acknowledged", f"is {self.acknowledged}: expected less than call.number, {self.number}")


@dataclass(slots=True, eq=False)
class _Entry:
    """A call that waits, is under way or is done. begin: starts it, and returns what its reply comes from."""

    id: CallId
    digest: str
    reply: "asyncio.Future[Reply]"
    begin: Begin | None = None  # None once it is on its way
    is_step: bool = False
    waiters: int = 0


@dataclass(slots=True)
class _Caller:
    entries: dict[int, _Entry] = field(default_factory=dict)


class RunCalls:
    """The calls of all clients on one run. deduplicated: is told of each repeat. max_held: calls that may wait."""

    def __init__(self, order: CallOrder, max_held: int, deduplicated: Callable[[], None]) -> None:
        self.order = order
        self._max_held = max_held
        self._deduplicated = deduplicated
        self._callers: dict[str, _Caller] = {}
        self._held: dict[_Entry, None] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self._closed = False

    async def call(self, call: CallId, digest: str, begin: Begin, *, is_step: bool = False) -> Reply:
        """Returns the reply, of this try or of an earlier one. The call goes on where its caller does not wait for it.

        begin: called when it is the call's turn; may raise OVERLOADED, and then the call may be tried again.
        Raises ServerError CALL_CHANGED, CALL_FORGOTTEN, OVERLOADED, RUN_WAITS, or what the call itself ended with.
        """
        entry = self._entry(call, digest, begin, is_step)
        entry.waiters += 1
        try:
            await asyncio.wait({entry.reply}, timeout=_HOLD_SECONDS if entry in self._held else None)
            if entry in self._held:
                raise self._waits(entry)
            return await asyncio.shield(entry.reply)
        finally:
            entry.waiters -= 1
            if not entry.waiters and entry in self._held:  # nobody wants it any more, and nothing of it has been done
                del self._held[entry]
                del self._callers[call.client].entries[call.number]

    def _entry(self, call: CallId, digest: str, begin: Begin, is_step: bool) -> _Entry:
        caller = self._callers.get(call.client)
        if caller is None:
            if len(self._callers) >= _MAX_CLIENTS:
                raise ServerError(
                    Reason.OVERLOADED, f"{_MAX_CLIENTS} clients use the run: no more now", retry_after=5.0
                )
            caller = self._callers[call.client] = _Caller()
        for number in [number for number in caller.entries if number <= call.acknowledged]:
            if caller.entries[number].reply.done():
                del caller.entries[number]
        entry = caller.entries.get(call.number)
        if entry is not None:
            if entry.digest != digest:
                raise ServerError(
                    Reason.CALL_CHANGED,
                    f"call {call.number} of client {call.client} came before with another content",
                    field="call.number",
                )
            self._deduplicated()
            return entry
        if call.number <= self.order.last(call.client):
            raise ServerError(
                Reason.CALL_FORGOTTEN, f"call {call.number} of client {call.client} is done, and its reply forgotten"
            )
        next_one = self.order.may_go(call.client, call.number, call.step)
        if len(caller.entries) >= _MAX_REPLIES or (len(self._held) >= self._max_held and not next_one):
            raise ServerError(
                Reason.OVERLOADED,
                f"{len(self._held)} calls wait for earlier ones, {len(caller.entries)} of this client are kept",
                retry_after=0.5,
            )
        entry = _Entry(call, digest, asyncio.get_running_loop().create_future(), begin, is_step)
        entry.reply.add_done_callback(lambda reply: reply.cancelled() or reply.exception())  # nobody may have waited
        caller.entries[call.number] = entry
        self._held[entry] = None
        self._let_go()
        return entry

    def _waits(self, entry: _Entry) -> ServerError:
        last = self.order.last(entry.id.client)
        if entry.id.number != last + 1:
            return ServerError(
                Reason.RUN_WAITS, f"call {entry.id.number} waits for call {last + 1}, which has not come"
            )
        return ServerError(Reason.RUN_WAITS, self.order.waiting_for() or "an earlier call is under way for too long")

    def _let_go(self) -> None:
        """Sends every call on its way whose turn it is."""
        moved = True
        while moved and not self._closed:
            moved = False
            for entry in list(self._held):
                call = entry.id
                if not self.order.may_go(call.client, call.number, call.step):
                    continue
                del self._held[entry]
                if self._begin(entry):
                    self.order.went(call.client, call.number, is_step=entry.is_step)
                    moved = True
                if self._closed:
                    break

    def _begin(self, entry: _Entry) -> bool:
        """False where it is refused for now, which uses up no number."""
        assert entry.begin is not None
        try:
            outcome = entry.begin()
        except ServerError as error:
            entry.reply.set_exception(error)
            del self._callers[entry.id.client].entries[entry.id.number]
            return False
        entry.begin = None  # with which the call's arrays go
        task = asyncio.ensure_future(self._finish(entry, outcome))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return True

    async def _finish(self, entry: _Entry, outcome: Awaitable[Any]) -> None:
        try:
            reply = await outcome
        except BaseException as error:
            if entry.is_step:
                self.order.step_failed()
            failure = error if isinstance(error, Exception) else ServerError(Reason.CANCELLED, "the run has ended")
            if not entry.reply.done():
                entry.reply.set_exception(failure)
            if not isinstance(error, Exception):
                raise
        else:
            if not entry.reply.done():
                entry.reply.set_result(reply)

    def close(self) -> "set[asyncio.Task[None]]":
        """Lets nothing new go; returns what is under way. For a call that begins, which is not among that yet."""
        self._closed = True
        return set(self._under_way)

    def open(self) -> None:
        """Lets calls go again after close()."""
        self._closed = False
        self._let_go()

    def end(self, error: ServerError) -> None:
        """Ends the calls that wait."""
        for entry in list(self._held):
            del self._held[entry]
            if not entry.reply.done():
                entry.reply.set_exception(error)

    def kept(self, done: dict[str, int]) -> dict[str, list[tuple[int, str, dict[str, Any]]]]:
        """Returns, by client, (number, digest, reply as JSON) of what is kept of calls up to those that are done."""
        return {
            client: [
                (number, entry.digest, replies.to_json(_outcome(entry)))
                for number, entry in sorted(caller.entries.items())
                if number <= done.get(client, 0) and entry.reply.done() and not entry.reply.cancelled()
            ]
            for client, caller in self._callers.items()
        }

    def keep(self, client: str, number: int, digest: str, reply: Reply | ServerError) -> None:
        """Takes in a reply that a checkpoint kept."""
        kept: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if isinstance(reply, ServerError):
            kept.set_exception(reply)
            kept.exception()
        else:
            kept.set_result(reply)
        entries = self._callers.setdefault(client, _Caller()).entries
        entries[number] = _Entry(CallId(client, number), digest, kept)


def _outcome(entry: _Entry) -> Reply | ServerError:
    error = entry.reply.exception()
    if error is None:
        return entry.reply.result()
    if isinstance(error, ServerError):
        return error
    return ServerError(Reason.INTERNAL, "the call failed on the server")
