"""The RunCalls call that all runs of a client share, which sends many calls on runs in one message.

It starts with the first entry and lasts as long as the client. If it breaks, its entries fail, and the next entry
starts another call: who sent them knows which of them to send again. To a server that does not know RunCalls nothing is
sent this way.
"""

import asyncio
import collections
import contextlib
import copy
from collections.abc import Callable

import grpc

from seqloom import wire
from seqloom._config import MESSAGE_BYTES
from seqloom.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    Overloaded,
    PermissionDenied,
    SeqloomError,
    Unauthenticated,
    Unavailable,
    from_status,
    from_transport,
)
from seqloom.errors import with_argument_names as renamed
from seqloom.v1.training_service_pb2 import RunCall, RunCallReply, RunCallsRequest, RunCallsResponse

RunCallsCall = grpc.aio.StreamStreamCall[bytes, RunCallsResponse]

_MAX_ENTRIES = 1024  # in one message
_CLOSE_SECONDS = 1.0  # how long the server may take to end a call that the client has ended
_BY_THEMSELVES = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED)
_SENT_AGAIN = (Unavailable, Overloaded, DeadlineExceeded, Cancelled, Unauthenticated, PermissionDenied)
_ENTRIES = RunCallsRequest.ENTRIES_FIELD_NUMBER


class NotServed(Exception):
    """The server does not know RunCalls, or takes no messages as large as these: each call is to be sent by itself.

    Calls that it has done nevertheless are known to it by their numbers.

    gRPC may lose this word of the server's (see from_transport): then the entries fail with Unavailable, as those of
    any call that breaks, and whoever sends them again asks again.
    """


class RunStream:
    """Sends entries and returns their replies. Belongs to one event loop. served: False once a server refused it."""

    def __init__(self, start_call: Callable[[], RunCallsCall]) -> None:
        self.served = True
        self._start_call = start_call
        self._call: _OpenCall | None = None
        self._closed = False

    async def send(self, entry: wire.Buffers) -> RunCallReply:
        """Sends an entry and returns its reply, which is no error. entry: the encoded fields but for its number.

        Raises the server's errors, errors of the connection, or NotServed. If the task that waits is cancelled, the
        server is told that nobody waits any more.
        """
        if self._closed:
            raise Cancelled("the client is closed", reason="CLIENT_CLOSED")
        if self._call is None or self._call.broken:
            self._call = _OpenCall(self._start_call())
        try:
            return await self._call.send(entry)
        except NotServed:
            self.served = False
            raise

    async def close(self) -> None:
        """Ends the call; open entries fail with Cancelled."""
        self._closed = True
        if self._call is not None:
            await self._call.close()


class _OpenCall:
    """One gRPC call, with a task that writes queued entries and a task that reads replies."""

    def __init__(self, call: RunCallsCall) -> None:
        self.broken = False
        self._call = call
        self._waiting: dict[int, asyncio.Future[RunCallReply]] = {}  # by entry
        self._numbers = 0
        self._outbox: collections.OrderedDict[int, wire.Buffers] = collections.OrderedDict()
        self._wake = asyncio.Event()
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    async def send(self, entry: wire.Buffers) -> RunCallReply:
        self._numbers += 1
        number = self._numbers
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._outbox[number] = entry
        self._wake.set()
        try:
            reply: RunCallReply = await future
        except asyncio.CancelledError:
            self._give_up(number)
            raise
        if reply.HasField("error"):
            raise renamed(from_status(reply.error), "xs")
        return reply

    def _give_up(self, number: int) -> None:
        written = self._outbox.pop(number, None) is None
        if self._waiting.pop(number, None) is not None and written and not self.broken:
            self._outbox[number] = [RunCall(cancel=True).SerializeToString()]
            self._wake.set()

    async def close(self) -> None:
        quiet = not self._waiting and not self.broken
        self._fail(Cancelled("the client is closed", reason="CLIENT_CLOSED"))
        if quiet:  # so that the server does not count the call as cancelled
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
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
                    await self._call.write(self._next_message())
                self._wake.clear()
                await self._wake.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the reader finds out why the call ended
        except Exception as bug:
            self._fail(Internal(f"a message could not be sent: {bug!r}", reason="UNSENT"))
            self._call.cancel()

    async def _read(self) -> None:
        error: Exception = Cancelled("the call was cancelled", reason="CANCELLED")
        try:
            while True:
                message = await self._call.read()
                if not isinstance(message, RunCallsResponse):  # grpc.aio.EOF
                    break
                for reply in message.entries:
                    future = self._waiting.pop(reply.entry, None)
                    if future is not None and not future.done():
                        future.set_result(reply)
            code = await self._call.code()
            error = Unavailable(f"the server ended the call ({code.name})", reason="CALL_ENDED")
        except Exception as failed:
            error = _reason(failed)
            self._call.cancel()  # after a message of another protocol it would go on
        finally:
            self._fail(error)
            self._tasks[0].cancel()

    def _fail(self, error: Exception) -> None:
        self.broken = True
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(copy.copy(error))  # each copy gets its own traceback
        self._outbox.clear()

    def _next_message(self) -> bytes:
        """Returns an encoded RunCallsRequest of the next entries, at least one."""
        parts: wire.Buffers = []
        entries, room = 0, MESSAGE_BYTES
        while self._outbox and entries < _MAX_ENTRIES:
            number, entry = next(iter(self._outbox.items()))
            encoded = wire.message(_ENTRIES, [RunCall(entry=number).SerializeToString(), *entry])
            size = sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in encoded)
            if entries and size > room:
                break
            del self._outbox[number]
            parts += encoded
            room -= size
            entries += 1
        return wire.joined(parts)


def _reason(failed: Exception) -> Exception:
    """What the entries of a call that ended with this error fail with.

    It is no answer to any of them: some may have been done. So it is one after which they are sent again, unless
    nothing is accepted from this client at all.
    """
    if isinstance(failed, grpc.aio.AioRpcError) and failed.code() in _BY_THEMSELVES:
        return NotServed()
    found: SeqloomError | None = from_transport(failed)
    if found is None:  # a message of another protocol
        return Internal(f"the server sent a message that cannot be decoded: {failed!r}", reason="MALFORMED_REPLY")
    if isinstance(found, _SENT_AGAIN):
        return found
    return Unavailable(f"the server ended the call: {found.message}", reason="CALL_ENDED", request_id=found.request_id)
