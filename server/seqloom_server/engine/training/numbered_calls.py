"""The numbered calls on one run: each is done once, in its turn, and its reply is kept for a repeat of the call."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from seqloom_server.engine.core.overload import HALF_A_SECOND, overloaded
from seqloom_server.engine.training.call_order import CallOrder
from seqloom_server.engine.training.replies import Reply
from seqloom_server.engine.training.run_state import MAX_CLIENTS, MAX_REPLIES
from seqloom_server.errors import Overload, Reason, ServerError, invalid, without_frames

_MAX_ID = 64
_HOLD_SECONDS = 60.0  # how long a call waits for earlier ones
_MAX_WAITERS = 16  # tries of one call that wait for its reply; a client that gives up lost ones has one or two

Begin = Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class CallId:
    """Names a call on a run.

    acknowledged: the last call whose reply the caller has. step: where the call is sent again after a restart, the step
    that its reply had named; 0 if no reply came. caller: whom its work is counted for.
    """

    client: str
    number: int
    acknowledged: int = 0
    step: int = 0
    caller: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """Client and number."""
        return self.client, self.number

    def __post_init__(self) -> None:
        if not (0 < len(self.client) <= _MAX_ID and self.client.isascii() and self.client.isalnum()):
            raise invalid("call.client", f"is {self.client[:80]!r}: expected 1 to {_MAX_ID} ASCII letters and digits")
        if self.number < 1:
            raise invalid("call.number", f"is {self.number}: expected at least 1")
        if self.acknowledged >= self.number:
            raise invalid("call.acknowledged", f"is {self.acknowledged}: expected less than call.number, {self.number}")


def check_names(calls: Mapping[str, int]) -> None:
    """Checks the clients and numbers that a step names. Raises ServerError as CallId does, of the first wrong one."""
    if not calls:
        return
    together = "".join(calls)  # one call for thousands of names, as the event loop waits for it
    right = together.isascii() and together.encode().isalnum() and "" not in calls  # of str it is 25 times as slow
    if not (right and max(map(len, calls)) <= _MAX_ID and min(calls.values()) >= 1):
        for client, number in calls.items():
            CallId(client, number)


@dataclass(slots=True, eq=False)
class _Entry:
    """A call that waits, is under way or is done. begin: starts it; returns an awaitable of its reply.

    gives_up_lost: when it begins, the steps that were lost with a server are given up.
    """

    id: CallId
    digest: str
    reply: "asyncio.Future[Reply]"
    begin: Begin | None = None  # None once the call has begun
    is_step: bool = False
    gives_up_lost: bool = False
    waiters: int = 0


@dataclass(frozen=True, slots=True)
class KeptReply:
    """A reply, which may be an error, as it is kept for a repeat of the call."""

    client: str
    number: int
    digest: str
    reply: Reply | ServerError


class NumberedCalls:
    """The calls of all clients on one run.

    max_held: how many may wait for earlier ones. deduplicated: called for every repeat. forgotten: called with each
    client that is forgotten in favour of another.
    """

    def __init__(
        self,
        order: CallOrder,
        max_held: int,
        deduplicated: Callable[[], None],
        forgotten: Callable[[str], None],
    ) -> None:
        self.order = order
        self._max_held = max_held
        self._deduplicated = deduplicated
        self._forgotten = forgotten
        self._clients: OrderedDict[str, dict[int, _Entry]] = OrderedDict()  # least recently used first
        self._held: dict[_Entry, None] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self._closed = False

    async def call(
        self, call: CallId, digest: str, begin: Begin, *, is_step: bool = False, gives_up_lost: bool = False
    ) -> Reply:
        """Returns the reply, of this try or of an earlier one. A call whose caller stops waiting goes on.

        begin: called when it is the call's turn; may raise OVERLOADED, and then the call may be tried again.
        gives_up_lost: it waits for no lost step, but gives them up, once all of its client's earlier calls are there.
        Raises ServerError CALL_CHANGED, CALL_FORGOTTEN, OVERLOADED, RUN_WAITS, or what the call itself ended with.
        """
        entry = self._entry(call, digest, begin, is_step, gives_up_lost)
        entry.waiters += 1
        try:
            if entry in self._held:
                await asyncio.wait({entry.reply}, timeout=_HOLD_SECONDS)
                if entry in self._held:
                    raise self._waits(entry)
            return await asyncio.shield(entry.reply)
        finally:
            entry.waiters -= 1
            if not entry.waiters and entry in self._held:  # nobody waits for it any more, and it has not begun
                del self._held[entry]
                del self._clients[call.client][call.number]

    def _entry(self, call: CallId, digest: str, begin: Begin, is_step: bool, gives_up_lost: bool) -> _Entry:
        entries = self._entries_of(call.client)
        for number in [number for number in entries if number <= call.acknowledged]:
            if entries[number].reply.done():
                del entries[number]
        entry = entries.get(call.number)
        if entry is not None:
            if entry.digest != digest:
                raise ServerError(
                    Reason.CALL_CHANGED,
                    f"call {call.number} of client {call.client} came before with another content",
                    field="call.number",
                )
            if entry.waiters >= _MAX_WAITERS and not entry.reply.done():
                raise overloaded(
                    f"{entry.waiters} tries of call {call.number} of client {call.client} wait for its reply",
                    HALF_A_SECOND,
                    Overload.RUNS,
                )
            self._deduplicated()
            return entry
        if call.number <= self.order.last_begun(call.client):
            raise ServerError(
                Reason.CALL_FORGOTTEN, f"call {call.number} of client {call.client} is done, and its reply forgotten"
            )
        is_next = self.order.may_begin(call.client, call.number, call.step)
        is_next |= gives_up_lost and self._all_came(call)
        if len(entries) >= MAX_REPLIES or (len(self._held) >= self._max_held and not is_next):
            raise overloaded(
                f"{len(self._held)} calls wait for earlier ones, {len(entries)} of this client are kept",
                HALF_A_SECOND,
                Overload.RUNS,
            )
        entry = _Entry(call, digest, asyncio.get_running_loop().create_future(), begin, is_step, gives_up_lost)
        entry.reply.add_done_callback(lambda reply: reply.cancelled() or reply.exception())  # nobody may have waited
        entries[call.number] = entry
        self._held[entry] = None
        self._begin_next()
        return entry

    def _entries_of(self, client: str) -> dict[int, _Entry]:
        """Returns a client's calls. Beyond MAX_CLIENTS forgets the least recently used one with no call under way."""
        entries = self._clients.setdefault(client, {})
        self._clients.move_to_end(client)
        if len(self._clients) > MAX_CLIENTS:
            for other, theirs in self._clients.items():
                if other != client and all(entry.reply.done() for entry in theirs.values()):
                    del self._clients[other]
                    self.order.forget(other)
                    self._forgotten(other)
                    break
        return entries

    def _waits(self, entry: _Entry) -> ServerError:
        last = self.order.last_begun(entry.id.client)
        if entry.id.number != last + 1:
            return ServerError(
                Reason.RUN_WAITS, f"call {entry.id.number} waits for call {last + 1}, which has not come"
            )
        return ServerError(Reason.RUN_WAITS, self.order.waiting_for() or "an earlier call is under way for too long")

    def _all_came(self, call: CallId) -> bool:
        """Returns whether every earlier call of the client has begun or waits here."""
        last = self.order.last_begun(call.client)
        waiting = sum(last < number < call.number for number in self._clients[call.client])
        return waiting == call.number - last - 1

    def _begin_next(self) -> None:
        """Begins every call whose turn it is."""
        moved = True
        while moved and not self._closed:
            moved = False
            for entry in list(self._held):
                call = entry.id
                if entry.gives_up_lost and self.order.waiting_for() and self._all_came(call):
                    self.order.forget_lost()  # not before, as the call may never have its turn
                    moved = True
                if not self.order.may_begin(call.client, call.number, call.step):
                    continue
                del self._held[entry]
                if self._begin(entry):
                    self.order.begin(call.client, call.number, is_step=entry.is_step)
                    moved = True
                if self._closed:
                    break

    def _begin(self, entry: _Entry) -> bool:
        """Begins a call; returns False where it is refused for now, which uses up no number."""
        assert entry.begin is not None
        try:
            outcome = entry.begin()
        except ServerError as error:
            entry.reply.set_exception(error)
            del self._clients[entry.id.client][entry.id.number]
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
            failure: BaseException = error
            if not isinstance(error, Exception):
                failure = ServerError(Reason.CANCELLED, "the run has ended")
            elif isinstance(error, ServerError) and error.reason is Reason.OVERLOADED:
                # its number is used up, so that the same call again would get the same reply again
                failure = ServerError(
                    Reason.NOT_DONE, f"{error.message}: nothing was done, and it may be called anew", cause=error.cause
                )
            if isinstance(failure, ServerError):  # kept for repeats, and with its frames all that they have come by
                without_frames(failure)
            if not entry.reply.done():
                entry.reply.set_exception(failure)
            if not isinstance(error, Exception):
                raise
        else:
            if not entry.reply.done():
                entry.reply.set_result(reply)

    def close(self) -> "set[asyncio.Task[None]]":
        """Begins no more calls until open(); returns the calls under way, without the one that is just beginning."""
        self._closed = True
        return set(self._under_way)

    def open(self) -> None:
        """Begins calls again after close()."""
        self._closed = False
        self._begin_next()

    def end(self, error: ServerError) -> None:
        """Ends the calls that wait with an error."""
        for entry in list(self._held):
            del self._held[entry]
            if not entry.reply.done():
                entry.reply.set_exception(error)

    def kept(self, done: dict[str, int]) -> list[KeptReply]:
        """Returns the kept replies. done: by client, the last call whose reply is wanted."""
        return [
            KeptReply(client, number, entry.digest, _outcome(entry))
            for client, entries in self._clients.items()
            for number, entry in sorted(entries.items())
            if number <= done.get(client, 0) and entry.reply.done() and not entry.reply.cancelled()
        ]

    def keep(self, kept: KeptReply) -> None:
        """Keeps a reply that a checkpoint has."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if isinstance(kept.reply, ServerError):
            future.set_exception(kept.reply)
            future.exception()
        else:
            future.set_result(kept.reply)
        entries = self._clients.setdefault(kept.client, {})
        entries[kept.number] = _Entry(CallId(kept.client, kept.number), kept.digest, future)


def _outcome(entry: _Entry) -> Reply | ServerError:
    error = entry.reply.exception()
    if error is None:
        return entry.reply.result()
    if isinstance(error, ServerError):
        return error
    return ServerError(Reason.INTERNAL, "the call failed on the server")
