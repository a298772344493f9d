"""One RunCalls call: its entries, each a call on a run with a task of its own, and their replies, many in one message.

All replies that are ready when the transport is free are sent together.
"""

import asyncio
import collections
from collections.abc import AsyncIterator, Callable

from google.rpc import code_pb2, status_pb2
from seqloom.v1 import training_service_pb2 as pb

from seqloom_server.engine.core.overload import ONE_SECOND, overloaded
from seqloom_server.errors import Overload, Reason, ServerError, invalid, over_limit
from seqloom_server.rpc.calls.byte_budget import ByteBudget
from seqloom_server.rpc.calls.interceptors import Context, count_entry, request_id
from seqloom_server.rpc.calls.request_metrics import RequestMetrics
from seqloom_server.rpc.calls.request_parts import LEAST_BYTES
from seqloom_server.rpc.calls.status import status_of
from seqloom_server.rpc.training import entry_cost, received_call
from seqloom_server.rpc.training.run_methods import RunMethods

_SERVICE = "seqloom.v1.TrainingService"
# under which the metrics count entries: those of the methods that do the same; None for what is no call
_METHODS = {
    "forward_backward": f"{_SERVICE}/ForwardBackward",
    "optim_step": f"{_SERVICE}/OptimStep",
    None: f"{_SERVICE}/RunCalls/entry",
}
_MAX_ENTRIES = 4096  # in one message, each of which may be answered by an error
_MAX_OPEN = 4096  # entries of a call that are not answered
_MAX_UNREAD_BYTES = 1 << 20  # of replies, beyond which no more requests are read from the caller


class RunStream:
    """The entries of one call. `read_from` receives messages, `write_to` sends replies until the call ends.

    max_call_bytes: of a ForwardBackward. max_message_bytes: of replies, unless a single one is larger. budget: charged
    for each entry, as the caller's, until its reply is sent.
    """

    def __init__(
        self,
        methods: RunMethods,
        request_metrics: RequestMetrics,
        max_call_bytes: int,
        max_message_bytes: int,
        budget: ByteBudget,
        caller: str,
    ) -> None:
        self._methods = methods
        self._request_metrics = request_metrics
        self._max_call_bytes = max_call_bytes
        self._max_message_bytes = max_message_bytes
        self._budget = budget
        self._caller = caller
        self._open: dict[int, asyncio.Task[None]] = {}
        self._replies: collections.deque[tuple[pb.RunCallReply, int]] = collections.deque()  # with what they hold
        self._unread = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._half_closed = False
        self._draining = False
        self._failure: Exception | None = None

    async def read_from(self, requests: AsyncIterator[pb.RunCallsRequest]) -> None:
        """Receives messages until the caller closes the stream; `write_to` raises the error of a malformed one."""
        try:
            async for request in requests:
                await self._receive(request)
                await self._has_room()
            self._half_closed = True
        except Exception as error:
            self._failure = error
        self._changed.set()

    async def write_to(self, context: Context) -> None:
        """Sends replies until the call ends, with or without an error, which it raises."""
        while True:
            while self._replies and self._failure is None:
                await context.write(self._next_message())
            if self._failure is not None:
                raise self._failure
            if not self._open and self._half_closed:
                return
            if not self._open and self._draining:
                raise ServerError(Reason.SHUTTING_DOWN, "the server is shutting down")
            self._changed.clear()
            await self._changed.wait()

    def drain(self) -> None:
        """Ends the call as soon as no entry is open: the server is shutting down."""
        self._draining = True
        self._changed.set()

    def close(self) -> None:
        """Gives up what is still open: calls that have begun go on, and keep their replies for a repeat."""
        for task in self._open.values():
            task.cancel()
        self._budget.give(sum(held for _, held in self._replies), self._caller)
        self._replies.clear()

    async def _receive(self, request: pb.RunCallsRequest) -> None:
        """Begins every entry of a message; an invalid one fails alone."""
        if len(request.entries) > _MAX_ENTRIES:
            raise over_limit("entries", f"has {len(request.entries)}: expected at most {_MAX_ENTRIES} in a message")
        cost = 0.0
        for entry in request.entries:
            number, kind = entry.entry, entry.WhichOneof("call")
            size = 0 if kind is None else getattr(entry, kind).ByteSize()
            cost += entry_cost.expected(entry, kind, size)
            if entry.cancel:
                if (task := self._open.pop(number, None)) is not None:
                    task.cancel()
                    self._changed.set()
            elif number in self._open:
                self._refuse(number, invalid("entries.entry", f"is {number}, which is open: this entry was dropped"))
            elif len(self._open) >= _MAX_OPEN:
                full = f"{_MAX_OPEN} calls of this stream are open"
                self._refuse(number, overloaded(full, ONE_SECOND, Overload.RUNS))
            else:
                self._open[number] = asyncio.create_task(self._answer(entry, kind, size))
            if cost >= entry_cost.AT_ONCE:
                cost = 0.0
                await asyncio.sleep(0)
                await self._has_room()

    def _refuse(self, number: int, error: ServerError) -> None:
        """Answers an entry that does not begin."""
        self._request_metrics.rejected(error)
        status = status_of(error, request_id())
        self._request_metrics.count(_METHODS[None], "", code_pb2.Code.Name(status.code), None)
        self._put(pb.RunCallReply(entry=number, error=status), 0)

    async def _has_room(self) -> None:
        """Waits until the caller has read enough replies."""
        while self._unread > _MAX_UNREAD_BYTES:
            self._room.clear()
            await self._room.wait()

    async def _answer(self, entry: pb.RunCall, kind: str | None, size: int) -> None:
        """Does one call and queues its reply. The task of its entry. kind: of the call, which has `size` bytes."""
        number = entry.entry
        held = 0

        def charge() -> None:
            nonlocal held
            charged = max(LEAST_BYTES, size)
            self._budget.take(charged, self._caller)
            held = charged  # only once it was taken: a refusal gives nothing back

        work = self._reply(entry, kind, size, charge)
        del entry  # a part of a message keeps the whole of it in memory, which many others may have made large
        try:
            outcome = await count_entry(_METHODS[kind], self._request_metrics, work)
        except BaseException:  # nobody waits for it any more
            self._budget.give(held, self._caller)
            raise
        del self._open[number]
        reply = pb.RunCallReply(entry=number)
        getattr(reply, "error" if isinstance(outcome, status_pb2.Status) else str(kind)).CopyFrom(outcome)
        self._put(reply, held)

    async def _reply(
        self, entry: pb.RunCall, kind: str | None, size: int, charge: Callable[[], None]
    ) -> pb.ForwardBackwardResponse | pb.OptimStepResponse:
        """Does one call. charge: charges its bytes. Raises ServerError."""
        if kind is None:
            raise invalid("entries.call", "is missing: expected one that this server knows, or `cancel`")
        if kind == "forward_backward":
            received_call.check_bytes(size, self._max_call_bytes)
        charge()
        if kind == "optim_step":
            work = self._methods.optim_step(entry.optim_step, self._caller)
            del entry
            return await work
        received = received_call.whole(entry.forward_backward, size)
        del entry
        return await self._methods.forward_backward(received, self._caller)

    def _put(self, reply: pb.RunCallReply, held: int) -> None:
        """Queues a reply. held: bytes of the budget that are given back when it is sent."""
        self._replies.append((reply, held))
        self._unread += reply.ByteSize()
        self._changed.set()

    def _next_message(self) -> pb.RunCallsResponse:
        """Removes as many replies as fit one message, at least one."""
        message = pb.RunCallsResponse()
        room = self._max_message_bytes
        while self._replies and (not message.entries or self._replies[0][0].ByteSize() <= room):
            reply, held = self._replies.popleft()
            size = reply.ByteSize()
            room, self._unread = room - size, self._unread - size
            message.entries.append(reply)
            self._budget.give(held, self._caller)
        self._room.set()
        return message
