"""The delivery of one client's calls on a run: in order, many in flight, each done once whatever breaks on the way.

A call stands in line, flies, and is kept in the log until the server could not lose it. Where the server or the
connection dies, one recovery asks the server how far it is, sends again what it lacks, one call after the other, and
only then the line moves on. A caller's timeout ends the caller's waiting; it withdraws a call that was never sent, and
no other: what comes later must come after it.
"""

import asyncio
import collections
import copy
import math
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar, cast

from seqloom._connection.channel import Channel
from seqloom._connection.service_stubs import CallOptions
from seqloom._retries import Backoff, remaining, until
from seqloom._training.call_log import CallLog, Kept
from seqloom._training.run_requests import REFUSED, RunRequest, SaveCheckpoint
from seqloom.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    Overloaded,
    PermissionDenied,
    SeqloomError,
    Unauthenticated,
    Unavailable,
    arrived,
    from_transport,
)
from seqloom.v1.training_service_pb2 import CallId, GetRunRequest, Run

Result = TypeVar("Result")

MAX_FLYING = 64
MAX_FLYING_BYTES = 64 << 20
_SECONDS_BETWEEN_LOOKS = 0.5  # at the connection, for who calls nothing


@dataclass(slots=True, eq=False)
class _Call:
    """A request and who waits for its result. own: not the caller's, but made here. trouble: why it takes so long."""

    request: RunRequest[object]
    future: asyncio.Future[object]
    own: bool = False
    trouble: SeqloomError | None = None

    @property
    def awaited(self) -> bool:
        return not self.own and not self.future.done()

    def fail(self, error: SeqloomError) -> None:
        if not self.future.done():
            self.future.set_exception(copy.copy(error))  # each is raised with a traceback of its own


class CallDelivery:
    """What one client has called on a run. Everything here runs on one event loop.

    options: what goes with every call. replay_bytes: how much is kept to be sent again.
    patience: seconds for which a lost server is looked for though nobody here waits for a call: others may wait for
    what this client has to send again.
    """

    def __init__(self, run: str, channel: Channel, options: CallOptions, replay_bytes: int, patience: float) -> None:
        self.client = secrets.token_hex(16)
        self._run = run
        self._channel = channel
        self._options = options
        self._replay_bytes = replay_bytes
        self._patience = patience
        self._log: CallLog[_Call] = CallLog()
        self._line: collections.deque[_Call] = collections.deque()
        self._flying: dict[asyncio.Task[None], int] = {}
        self._recovery: asyncio.Task[None] | None = None
        self._stalled = False  # calls are unanswered, and nothing is under way
        self._trouble: SeqloomError | None = None
        self._saving: _Call | None = None
        self._saved = False
        self._closed: SeqloomError | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._quiet = asyncio.Event()

    def submit(self, request: RunRequest[Result], deadline: float) -> asyncio.Future[Result]:
        """Puts a call in line; returns the future of its result."""
        if self._closed is not None:
            raise copy.copy(self._closed)
        loop = asyncio.get_running_loop()
        call = _Call(request, loop.create_future())
        self._quiet.clear()
        if deadline != math.inf:
            timer = loop.call_later(remaining(deadline) or 0.0, self._expire, call)
            call.future.add_done_callback(lambda _: timer.cancel())
        self._line.append(call)
        self._pump()
        return cast("asyncio.Future[Result]", call.future)  # its request makes results of this type

    async def drain(self, deadline: float) -> None:
        """Waits until every call was answered, and makes all of it durable. Raises what stands in the way."""
        if self._line or len(self._log):
            await self.submit(SaveCheckpoint(""), deadline)
        try:
            async with until(deadline):
                self._pump()
                await self._quiet.wait()  # replies to calls before it may still be under way
        except TimeoutError:
            raise self._trouble or DeadlineExceeded("not every call was answered in time", reason="TIMEOUT") from None

    def look(self) -> None:
        """Sees whether the connection is lost: behind the next may be another server, which has lost what was done."""
        if len(self._log) and self._recovery is None and not self._stalled and not self._channel.connected:
            self._recovery = asyncio.create_task(self._recover(None))

    def _keep_looking(self) -> None:
        self._looking = None
        self.look()
        self._look_later()

    def _look_later(self) -> None:
        if self._looking is None and len(self._log) and self._closed is None:
            self._looking = asyncio.get_running_loop().call_later(_SECONDS_BETWEEN_LOOKS, self._keep_looking)

    def abort(self, error: SeqloomError) -> None:
        """Ends everything; who waits gets the error."""
        self._closed = error
        if self._looking is not None:
            self._looking.cancel()
        for task in [*self._flying, *([] if self._recovery is None else [self._recovery])]:
            task.cancel()
        self._fail(error)

    def _pump(self) -> None:
        """Sends what may be sent."""
        if self._closed is not None:
            return
        while self._line and self._line[0].future.done():
            self._line.popleft()  # withdrawn
        if self._line:
            self.look()
        if self._stalled and self._line and self._recovery is None:
            self._recovery = asyncio.create_task(self._recover(None))
        while self._line and self._recovery is None and not self._stalled and self._fits(self._line[0].request.size):
            call = self._line.popleft()
            if not call.future.done():
                self._saved = False
                self._launch(call)
        if not self._line and self._log.settled:
            self._quiet.set()

    def _fits(self, size: int) -> bool:
        flying = sum(self._flying.values())
        if len(self._flying) >= MAX_FLYING or (flying and flying + size > MAX_FLYING_BYTES):
            return False
        if not self._log.size or self._log.size + size <= self._replay_bytes or self._saved:
            return True
        if self._saving is None:
            self._saving = _Call(SaveCheckpoint(""), asyncio.get_running_loop().create_future(), own=True)
            self._saving.future.add_done_callback(self._save_ended)
            self._launch(self._saving)
        return False

    def _save_ended(self, future: asyncio.Future[object]) -> None:
        self._saving = None
        error = future.exception() if not future.cancelled() else None
        if isinstance(error, SeqloomError):  # what may be kept is full, and stays so
            self._fail(error)
        self._saved = True
        self._pump()

    def _launch(self, call: _Call) -> None:
        size = call.request.size
        task = asyncio.create_task(self._fly(self._log.add(call, size)))
        self._flying[task] = size
        task.add_done_callback(self._landed)
        self._look_later()

    def _landed(self, task: asyncio.Task[None]) -> None:
        del self._flying[task]
        self._pump()

    async def _fly(self, kept: Kept[_Call]) -> None:
        backoff = Backoff(sys.maxsize, math.inf)
        while True:
            try:
                return await self._attempt(kept)
            except Overloaded as error:
                if kept.request is not None:
                    kept.request.trouble = error
                if not self._awaited():
                    self._stalled = True
                    return
                await asyncio.sleep(backoff.delay(error))
            except SeqloomError as error:
                return self._interrupted(error)

    async def _attempt(self, kept: Kept[_Call]) -> None:
        """Sends a call and takes its answer, a refusal too. Raises what is no answer."""
        call = kept.request
        request = REFUSED if call is None else call.request
        number = CallId(
            run=self._run,
            client=self.client,
            number=kept.number,
            acknowledged=min(self._log.acknowledged, kept.number - 1),
            step=kept.step,
        )
        try:
            reply = await request.send(self._channel.training, number, kept.calls, self._options)
        except (Exception, asyncio.CancelledError) as failed:
            error = failed if isinstance(failed, SeqloomError) else from_transport(failed)
            if error is None:
                raise
            if _passes(error) or _ends(error):
                raise error from None
            self._log.refuse(kept)
            if call is not None:
                call.fail(error)
                await self._attempt(kept)  # it may have been refused before it was counted: its number is used up
            return
        if call is None:
            raise Internal("the server did what it had refused", reason="MALFORMED_REPLY")
        self._log.answer(kept, reply.step, reply.calls, reply.calls_durable)
        if not call.future.done():
            call.future.set_result(reply.result)

    def _interrupted(self, error: SeqloomError) -> None:
        if _ends(error):
            self._stalled = True
            self._fail(error)
        elif self._recovery is None and self._closed is None:
            self._recovery = asyncio.create_task(self._recover(error))

    async def _recover(self, error: SeqloomError | None) -> None:
        backoff = Backoff(sys.maxsize, math.inf)
        patient_until = time.monotonic() + self._patience
        self._stalled = True
        try:
            for task in list(self._flying):
                task.cancel()
            if self._flying:
                await asyncio.wait(list(self._flying))
            while self._awaited() or time.monotonic() < patient_until:
                self._trouble = error
                if error is not None:
                    await asyncio.sleep(backoff.delay(error))
                before = self._log.acknowledged
                try:
                    await self._send_again()
                except SeqloomError as failed:
                    error = failed
                    if _ends(error):
                        self._fail(error)
                        return
                    if self._log.acknowledged > before:
                        backoff = Backoff(sys.maxsize, math.inf)
                else:
                    self._stalled, self._trouble = False, None
                    return
        finally:
            self._recovery = None
            self._pump()

    async def _send_again(self) -> None:
        try:
            request_progress = GetRunRequest(run=self._run, client=self.client)
            reply = arrived(await self._channel.training.GetRun(request_progress, **self._options))
        except (Exception, asyncio.CancelledError) as failed:
            error = failed if isinstance(failed, SeqloomError) else from_transport(failed)
            if error is None:
                raise
            raise error from None
        run: Run = reply.run
        self._log.settle(run.calls_durable)
        try:
            lost = self._log.lost(run.calls_done)
        except LookupError as missing:
            raise Internal(f"the server has lost what it had called durable: {missing}", reason="CALLS_LOST") from None
        for kept in lost:
            await self._attempt(kept)

    def _awaited(self) -> bool:
        """Whether anybody waits for anything."""
        return any(call.awaited for call in self._calls())

    def _calls(self) -> Iterator[_Call]:
        yield from self._line
        for kept in self._log:
            if kept.request is not None:
                yield kept.request

    def _expire(self, call: _Call) -> None:
        trouble = call.trouble or self._trouble
        call.fail(trouble or DeadlineExceeded("no answer came in time", reason="TIMEOUT"))
        self._pump()

    def _fail(self, error: SeqloomError) -> None:
        for call in list(self._calls()):
            call.fail(error)
        self._line.clear()
        self._quiet.set()


def _passes(error: SeqloomError) -> bool:
    """Whether the call was not answered: nobody knows whether it was done, and it must be sent again."""
    return isinstance(error, Overloaded | Unavailable | DeadlineExceeded | Cancelled)


def _ends(error: SeqloomError) -> bool:
    """Whether no call of this client can be delivered any more, for now."""
    refused = isinstance(error, Unauthenticated | PermissionDenied)
    return refused or error.reason in ("RUN_NOT_FOUND", "RUN_BROKEN", "CALLS_LOST", "MALFORMED_REPLY")
