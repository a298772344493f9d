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
from collections.abc import Iterator
from typing import TypeVar, cast

from seqloom._connection.channel import Channel
from seqloom._connection.service_stubs import CallOptions
from seqloom._retries import Backoff, remaining, until
from seqloom._retry_budget import RetryBudget
from seqloom._training.call_attempts import CallAttempts, PendingCall, is_fatal
from seqloom._training.call_log import LoggedCall
from seqloom._training.call_recovery import Recovery
from seqloom._training.run_requests import RunRequest, SaveCheckpoint
from seqloom.errors import DeadlineExceeded, Overloaded, SeqloomError

Result = TypeVar("Result")

MAX_IN_FLIGHT = 64
MAX_IN_FLIGHT_BYTES = 64 << 20


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
        self._attempts = CallAttempts(run, channel, options)
        self._log = self._attempts.log
        self._recovery = Recovery(self, self._attempts, recovery_seconds)
        self._channel = channel
        self._replay_bytes = replay_bytes
        self._retry_budget = retry_budget
        self._queue: collections.deque[PendingCall] = collections.deque()
        self._in_flight: dict[asyncio.Task[None], int] = {}
        self._in_flight_bytes = 0
        self._saving: PendingCall | None = None
        self._saved = False
        self._closed: SeqloomError | None = None
        self._all_answered = asyncio.Event()

    @property
    def client(self) -> str:
        """The name under which the calls are numbered."""
        return self._attempts.client

    @property
    def awaited(self) -> bool:
        """Whether a caller waits for any call."""
        return any(call.awaited for call in self._calls())

    def submit(self, request: RunRequest[Result], deadline: float) -> asyncio.Future[Result]:
        """Queues a call; returns the future of its result."""
        if self._closed is not None:
            raise copy.copy(self._closed)
        loop = asyncio.get_running_loop()
        call = PendingCall(request, loop.create_future())
        self._all_answered.clear()
        self._retry_budget.add_call()
        if deadline != math.inf:
            timer = loop.call_later(remaining(deadline) or 0.0, self._expire, call)
            call.future.add_done_callback(lambda _: timer.cancel())
        self._queue.append(call)
        self.send_queued()
        return cast("asyncio.Future[Result]", call.future)  # the request's result has this type

    async def drain(self, deadline: float) -> None:
        """Waits until every call is answered and durable. Raises DeadlineExceeded, or the error that prevents it."""
        if self._queue or len(self._log):
            await self.submit(SaveCheckpoint(""), deadline)
        try:
            async with until(deadline):
                self.send_queued()
                await self._all_answered.wait()  # replies to earlier calls may still be in flight
        except TimeoutError:
            raise self._recovery.last_error or DeadlineExceeded(
                "the server did not respond to every call before the timeout", reason="TIMEOUT"
            ) from None

    def connection_lost(self) -> None:
        """Starts a recovery: another server, without the last calls, may be behind a connection that is restored."""
        self._recovery.connection_lost()

    def check_connection(self) -> None:
        """Starts a recovery if the connection is lost now, before a call restores it."""
        if len(self._log) and not self._channel.connected:
            self._recovery.check_lost()

    def abort(self, error: SeqloomError) -> None:
        """Ends the delivery; every call that is not answered fails with the error."""
        self._closed = error
        self._recovery.end()
        for task in list(self._in_flight):
            task.cancel()
        self.fail(error)

    async def interrupt(self) -> None:
        """Ends the attempts in flight."""
        for task in list(self._in_flight):
            task.cancel()
        if self._in_flight:
            await asyncio.wait(list(self._in_flight))

    def send_queued(self) -> None:
        """Sends queued calls as far as the limits allow."""
        if self._closed is not None:
            return
        while self._queue and self._queue[0].future.done():
            self._queue.popleft()  # its caller gave up
        if self._queue:
            self.check_connection()
            self._recovery.resume()
        while self._queue and not self._recovery.blocks and self._fits(self._queue[0].request.size):
            call = self._queue.popleft()
            if not call.future.done():
                self._saved = False
                self._start(call)
        if not self._queue and self._log.settled:
            self._all_answered.set()

    def new_backoff(self) -> Backoff:
        """Returns the pauses between the attempts at a call."""
        return Backoff(None, math.inf, self._retry_budget)

    def fail(self, error: SeqloomError) -> None:
        """Fails every call that is not answered, and drops those that were not sent."""
        for call in list(self._calls()):
            call.fail(error)
        self._queue.clear()
        self._all_answered.set()

    def _fits(self, size: int) -> bool:
        """Returns whether a call can be sent now. If the log is full, asks the server to save."""
        in_flight = self._in_flight_bytes
        if len(self._in_flight) >= MAX_IN_FLIGHT or (in_flight and in_flight + size > MAX_IN_FLIGHT_BYTES):
            return False
        if not self._log.size or self._log.size + size <= self._replay_bytes or self._saved:
            return True
        if self._saving is None:
            self._saving = PendingCall(SaveCheckpoint(""), asyncio.get_running_loop().create_future(), internal=True)
            self._saving.future.add_done_callback(self._save_ended)
            self._start(self._saving)
        return False

    def _save_ended(self, future: asyncio.Future[object]) -> None:
        self._saving = None
        error = future.exception() if not future.cancelled() else None
        if isinstance(error, SeqloomError):  # the log is full, and stays full
            self.fail(error)
        self._saved = True
        self.send_queued()

    def _start(self, call: PendingCall) -> None:
        size = call.request.size
        task = asyncio.create_task(self._deliver(self._log.add(call, size)))
        self._in_flight[task] = size
        self._in_flight_bytes += size
        task.add_done_callback(self._delivery_ended)

    def _delivery_ended(self, task: asyncio.Task[None]) -> None:
        self._in_flight_bytes -= self._in_flight.pop(task)
        self.send_queued()

    async def _deliver(self, logged: LoggedCall[PendingCall]) -> None:
        backoff: Backoff | None = None  # made once the call was refused, which is seldom
        while True:
            try:
                return await self._attempts.send(logged)
            except Overloaded as error:
                if logged.call is not None:
                    logged.call.last_error = error
                self._recovery.note_refusal(error)
                if not self.awaited:
                    return self._recovery.stall(error)
                backoff = backoff or self.new_backoff()
                await asyncio.sleep(backoff.delay(error))
            except SeqloomError as error:
                return self._interrupted(error)

    def _interrupted(self, error: SeqloomError) -> None:
        if is_fatal(error):
            self._recovery.stall()
            self.fail(error)
        else:
            self._recovery.start(error)

    def _calls(self) -> Iterator[PendingCall]:
        yield from self._queue
        for logged in self._log:
            if logged.call is not None:
                yield logged.call

    def _expire(self, call: PendingCall) -> None:
        last_error = call.last_error or self._recovery.last_error
        call.fail(last_error or DeadlineExceeded("the server did not respond before the timeout", reason="TIMEOUT"))
        self.send_queued()
