"""Delivers one client's calls on a training run in order, each exactly once, across lost connections and restarts.

A call is queued, sent while others are in flight, and kept in the log until it is durable on the server. If the server
or the connection fails, one recovery asks the server which calls it has, and sends the others again, one after the
other, before any queued call. A timeout ends only the caller's wait: a call that is still queued is dropped, but a call
that was sent is not, as later calls depend on it.
"""

import asyncio
import collections
import copy
import math
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar, cast

from seqloom._connection.channel import Channel
from seqloom._connection.service_stubs import CallOptions
from seqloom._retries import Backoff, remaining, until
from seqloom._retry_budget import RetryBudget
from seqloom._training.call_log import CallLog, LoggedCall
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
    checked_reply,
    from_transport,
)
from seqloom.v1.training_service_pb2 import CallId, GetRunRequest, Run

Result = TypeVar("Result")

MAX_IN_FLIGHT = 64
MAX_IN_FLIGHT_BYTES = 64 << 20


@dataclass(slots=True, eq=False)
class _Call:
    """A request and the future of its result. internal: no caller waits for it. last_error: why it is delayed."""

    request: RunRequest[object]
    future: asyncio.Future[object]
    internal: bool = False
    last_error: SeqloomError | None = None

    @property
    def awaited(self) -> bool:
        """Whether a caller waits for the result."""
        return not self.internal and not self.future.done()

    def fail(self, error: SeqloomError) -> None:
        """Raises the error in the caller, unless the call has ended."""
        if not self.future.done():
            self.future.set_exception(copy.copy(error))  # each copy gets its own traceback


class CallDelivery:
    """Delivers one client's calls on a run. Everything here runs on one event loop.

    options: of every call. replay_bytes: size of the log above which the server is asked to save. recovery_seconds: how
    long a recovery goes on if no caller waits: other clients may wait for calls that this client must send again.
    retry_budget: of all the client's calls; these calls are repeated also if it is spent, but seldom.
    """

    def __init__(
        self,
        run: str,
        channel: Channel,
        options: CallOptions,
        replay_bytes: int,
        recovery_seconds: float,
        retry_budget: RetryBudget,
    ) -> None:
        self.client = secrets.token_hex(16)
        self._run = run
        self._channel = channel
        self._options = options
        self._replay_bytes = replay_bytes
        self._recovery_seconds = recovery_seconds
        self._retry_budget = retry_budget
        self._log: CallLog[_Call] = CallLog()
        self._queue: collections.deque[_Call] = collections.deque()
        self._in_flight: dict[asyncio.Task[None], int] = {}
        self._recovery: asyncio.Task[None] | None = None
        self._stalled = False  # calls are unanswered, and none is in flight
        self._stalled_by: tuple[SeqloomError | None, float] = (None, 0.0)  # and when, on time.monotonic's clock
        self._not_before = 0.0  # when a refused call may be sent again, by a recovery too
        self._last_error: SeqloomError | None = None
        self._saving: _Call | None = None
        self._saved = False
        self._closed: SeqloomError | None = None
        self._losses = 0  # of the connection
        self._all_answered = asyncio.Event()

    def submit(self, request: RunRequest[Result], deadline: float) -> asyncio.Future[Result]:
        """Queues a call; returns the future of its result."""
        if self._closed is not None:
            raise copy.copy(self._closed)
        loop = asyncio.get_running_loop()
        call = _Call(request, loop.create_future())
        self._all_answered.clear()
        self._retry_budget.add_call()
        if deadline != math.inf:
            timer = loop.call_later(remaining(deadline) or 0.0, self._expire, call)
            call.future.add_done_callback(lambda _: timer.cancel())
        self._queue.append(call)
        self._send_queued()
        return cast("asyncio.Future[Result]", call.future)  # the request's result has this type

    async def drain(self, deadline: float) -> None:
        """Waits until every call is answered and durable. Raises DeadlineExceeded, or the error that prevents it."""
        if self._queue or len(self._log):
            await self.submit(SaveCheckpoint(""), deadline)
        try:
            async with until(deadline):
                self._send_queued()
                await self._all_answered.wait()  # replies to earlier calls may still be in flight
        except TimeoutError:
            raise self._last_error or DeadlineExceeded(
                "the server did not respond to every call before the timeout", reason="TIMEOUT"
            ) from None

    def connection_lost(self) -> None:
        """Starts a recovery: another server, without the last calls, may be behind a connection that is restored."""
        self._losses += 1
        self._start_recovery()

    def check_connection(self) -> None:
        """Starts a recovery if the connection is lost now, before a call restores it."""
        if len(self._log) and not self._channel.connected:
            self._start_recovery()

    def _start_recovery(self) -> None:
        if len(self._log) and self._recovery is None and not self._stalled and self._closed is None:
            self._recovery = asyncio.create_task(self._recover(None))

    def abort(self, error: SeqloomError) -> None:
        """Ends the delivery; every call that is not answered fails with the error."""
        self._closed = error
        for task in [*self._in_flight, *([] if self._recovery is None else [self._recovery])]:
            task.cancel()
        self._fail(error)

    def _send_queued(self) -> None:
        """Sends queued calls as far as the limits allow."""
        if self._closed is not None:
            return
        while self._queue and self._queue[0].future.done():
            self._queue.popleft()  # its caller gave up
        if self._queue:
            self.check_connection()
        if self._stalled and self._queue and self._recovery is None:
            self._recovery = asyncio.create_task(self._recover(*self._stalled_by))
        while self._queue and self._recovery is None and not self._stalled and self._fits(self._queue[0].request.size):
            call = self._queue.popleft()
            if not call.future.done():
                self._saved = False
                self._start(call)
        if not self._queue and self._log.settled:
            self._all_answered.set()

    def _fits(self, size: int) -> bool:
        """Returns whether a call can be sent now. If the log is full, asks the server to save."""
        in_flight = sum(self._in_flight.values())
        if len(self._in_flight) >= MAX_IN_FLIGHT or (in_flight and in_flight + size > MAX_IN_FLIGHT_BYTES):
            return False
        if not self._log.size or self._log.size + size <= self._replay_bytes or self._saved:
            return True
        if self._saving is None:
            self._saving = _Call(SaveCheckpoint(""), asyncio.get_running_loop().create_future(), internal=True)
            self._saving.future.add_done_callback(self._save_ended)
            self._start(self._saving)
        return False

    def _save_ended(self, future: asyncio.Future[object]) -> None:
        self._saving = None
        error = future.exception() if not future.cancelled() else None
        if isinstance(error, SeqloomError):  # the log is full, and stays full
            self._fail(error)
        self._saved = True
        self._send_queued()

    def _start(self, call: _Call) -> None:
        size = call.request.size
        task = asyncio.create_task(self._deliver(self._log.add(call, size)))
        self._in_flight[task] = size
        task.add_done_callback(self._delivery_ended)

    def _delivery_ended(self, task: asyncio.Task[None]) -> None:
        del self._in_flight[task]
        self._send_queued()

    async def _deliver(self, logged: LoggedCall[_Call]) -> None:
        backoff = self._backoff()
        while True:
            try:
                return await self._attempt(logged)
            except Overloaded as error:
                if logged.call is not None:
                    logged.call.last_error = error
                self._note_refusal(error)
                if not self._awaited():
                    self._stalled, self._stalled_by = True, (error, time.monotonic())
                    return
                await asyncio.sleep(backoff.delay(error))
            except SeqloomError as error:
                return self._interrupted(error)

    def _note_refusal(self, error: SeqloomError) -> None:
        if isinstance(error, Overloaded):
            self._not_before = max(self._not_before, time.monotonic() + error.retry_after)

    def _backoff(self) -> Backoff:
        return Backoff(None, math.inf, self._retry_budget)

    async def _attempt(self, logged: LoggedCall[_Call]) -> None:
        """Sends a call and records the reply or the refusal. Raises errors after which it must be sent again."""
        call = logged.call
        request = REFUSED if call is None else call.request
        number = CallId(
            run=self._run,
            client=self.client,
            number=logged.number,
            acknowledged=min(self._log.acknowledged, logged.number - 1),
            step=logged.step,
        )
        try:
            reply = await request.send(self._channel.training, number, logged.calls, self._options)
        except (Exception, asyncio.CancelledError) as failed:
            error = failed if isinstance(failed, SeqloomError) else from_transport(failed)
            if error is None:
                raise
            if _is_unanswered(error) or _is_fatal(error):
                raise error from None
            self._log.refuse(logged)
            if call is not None:
                call.fail(error)
                await self._attempt(logged)  # so that its number is used up, if it was refused before it was counted
            return
        if call is None:
            raise Internal("the server accepted a call that it had refused", reason="MALFORMED_REPLY")
        self._log.answer(logged, reply.step, reply.calls, reply.calls_durable)
        if not call.future.done():
            call.future.set_result(reply.result)

    def _interrupted(self, error: SeqloomError) -> None:
        if _is_fatal(error):
            self._stalled = True
            self._fail(error)
        elif self._recovery is None and self._closed is None:
            self._recovery = asyncio.create_task(self._recover(error))

    async def _recover(self, error: SeqloomError | None, failed_at: float | None = None) -> None:
        """Sends again what may be lost, until it succeeds. failed_at: when the error came; None for now."""
        if failed_at is None:
            failed_at = time.monotonic()
        backoff = self._backoff()
        recover_until = time.monotonic() + self._recovery_seconds
        self._stalled, self._stalled_by = True, (None, 0.0)
        try:
            for task in list(self._in_flight):
                task.cancel()
            if self._in_flight:
                await asyncio.wait(list(self._in_flight))
            while self._awaited() or time.monotonic() < recover_until:
                self._last_error = error
                pause_ends = self._not_before
                if error is not None:
                    pause_ends = max(pause_ends, failed_at + backoff.delay(error))
                await asyncio.sleep(pause_ends - time.monotonic())
                before, losses = self._log.acknowledged, self._losses
                try:
                    await self._send_again()
                except SeqloomError as failed:
                    error, failed_at = failed, time.monotonic()
                    self._note_refusal(error)
                    if _is_fatal(error):
                        self._fail(error)
                        return
                    if self._log.acknowledged > before:
                        backoff = self._backoff()
                else:
                    if self._losses == losses:
                        self._stalled, self._last_error = False, None
                        return
                    error = None  # lost again meanwhile
            self._stalled_by = error, failed_at
        finally:
            self._recovery = None
            self._send_queued()

    async def _send_again(self) -> None:
        try:
            request_progress = GetRunRequest(run=self._run, client=self.client)
            reply = checked_reply(await self._channel.training.GetRun(request_progress, **self._options))
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
            raise Internal(
                f"the server has lost calls that it reported as durable: {missing}", reason="CALLS_LOST"
            ) from None
        for logged in lost:
            await self._attempt(logged)

    def _awaited(self) -> bool:
        """Whether a caller waits for any call."""
        return any(call.awaited for call in self._calls())

    def _calls(self) -> Iterator[_Call]:
        yield from self._queue
        for logged in self._log:
            if logged.call is not None:
                yield logged.call

    def _expire(self, call: _Call) -> None:
        last_error = call.last_error or self._last_error
        call.fail(last_error or DeadlineExceeded("the server did not respond before the timeout", reason="TIMEOUT"))
        self._send_queued()

    def _fail(self, error: SeqloomError) -> None:
        for call in list(self._calls()):
            call.fail(error)
        self._queue.clear()
        self._all_answered.set()


def _is_unanswered(error: SeqloomError) -> bool:
    """Whether it is unknown if the call was done, so that it must be sent again."""
    return isinstance(error, Overloaded | Unavailable | DeadlineExceeded | Cancelled)


def _is_fatal(error: SeqloomError) -> bool:
    """Whether no call can be delivered until the caller acts."""
    refused = isinstance(error, Unauthenticated | PermissionDenied)
    return refused or error.reason in ("RUN_NOT_FOUND", "RUN_BROKEN", "CALLS_LOST", "MALFORMED_REPLY")
