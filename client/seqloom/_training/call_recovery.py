"""Recovers one client's calls on a run after a failure: when to try again, for how long, and what was lost.

While a recovery is under way, or after one was given up with calls unanswered, nothing else is sent.
"""

import asyncio
import time
import weakref
from typing import Protocol

from seqloom._retries import Backoff
from seqloom._training.call_attempts import CallAttempts, is_fatal
from seqloom.errors import Overloaded, SeqloomError


class RecoveringDelivery(Protocol):
    """What a recovery needs of the delivery whose calls it sends again."""

    @property
    def awaited(self) -> bool:
        """Whether a caller waits for any call."""

    async def interrupt(self) -> None:
        """Ends the attempts in flight."""

    def fail(self, error: SeqloomError) -> None:
        """Fails every call that is not answered."""

    def send_queued(self) -> None:
        """Sends queued calls; called when the recovery has ended."""

    def new_backoff(self) -> Backoff:
        """Returns the pauses between the attempts at a call."""


class Recovery:
    """The recovery of one delivery. seconds: how long one goes on if no caller waits: other clients may wait for calls
    that this client must send again.

    stalled: calls are unanswered, and none is in flight. last_error: why calls are delayed now.
    """

    def __init__(self, delivery: RecoveringDelivery, attempts: CallAttempts, seconds: float) -> None:
        self.stalled = False
        self.last_error: SeqloomError | None = None
        self._delivery = weakref.ref(delivery)  # so that a run which nobody keeps is freed at once, with its log
        self._attempts = attempts
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None
        self._stalled_by: tuple[SeqloomError | None, float] = (None, 0.0)  # and when, on time.monotonic's clock
        self._not_before = 0.0  # when a refused call may be sent again, by a recovery too
        self._losses = 0  # of the connection
        self._ended = False

    @property
    def blocks(self) -> bool:
        """Whether calls must wait for a recovery."""
        return self.stalled or self._task is not None

    def start(self, error: SeqloomError | None) -> None:
        """Starts a recovery, unless one is under way. error: after which the next attempt waits; None for no pause."""
        self._begin(error, time.monotonic())

    def resume(self) -> None:
        """Goes on where all callers had given up, unless a recovery is under way."""
        if self.stalled:
            self._begin(*self._stalled_by)

    def connection_lost(self) -> None:
        """Starts a recovery, or has the one under way begin anew, if any call could be lost."""
        self._losses += 1
        self.check_lost()

    def check_lost(self) -> None:
        """Starts a recovery after a lost connection, if any call could be lost and the delivery is not stalled."""
        if len(self._attempts.log) and not self.stalled:
            self.start(None)

    def stall(self, error: SeqloomError | None = None) -> None:
        """Sends nothing until resume(). error: after which the next attempt will wait, from now on."""
        self.stalled = True
        if error is not None:
            self._stalled_by = error, time.monotonic()

    def note_refusal(self, error: SeqloomError) -> None:
        """Remembers until when a refused call must not be sent again."""
        if isinstance(error, Overloaded):
            self._not_before = max(self._not_before, time.monotonic() + error.retry_after)

    def end(self) -> None:
        """Ends the recovery; no other starts."""
        self._ended = True
        if self._task is not None:
            self._task.cancel()

    def _begin(self, error: SeqloomError | None, failed_at: float) -> None:
        delivery = self._delivery()
        if self._task is None and not self._ended and delivery is not None:
            self._task = asyncio.create_task(self._recover(delivery, error, failed_at))

    async def _recover(self, delivery: RecoveringDelivery, error: SeqloomError | None, failed_at: float) -> None:
        """Sends again what may be lost, until it succeeds. failed_at: when the error came."""
        backoff = delivery.new_backoff()
        recover_until = time.monotonic() + self._seconds
        self.stalled, self._stalled_by = True, (None, 0.0)
        try:
            await delivery.interrupt()
            while delivery.awaited or time.monotonic() < recover_until:
                self.last_error = error
                pause_ends = self._not_before
                if error is not None:
                    pause_ends = max(pause_ends, failed_at + backoff.delay(error))
                await asyncio.sleep(pause_ends - time.monotonic())
                before, losses = self._attempts.log.acknowledged, self._losses
                try:
                    await self._attempts.send_lost()
                except SeqloomError as failed:
                    error, failed_at = failed, time.monotonic()
                    self.note_refusal(error)
                    if is_fatal(error):
                        delivery.fail(error)
                        return
                    if self._attempts.log.acknowledged > before:
                        backoff = delivery.new_backoff()
                else:
                    if self._losses == losses:
                        self.stalled, self.last_error = False, None
                        return
                    error = None  # lost again meanwhile
            self._stalled_by = error, failed_at
        finally:
            self._task = None
            delivery.send_queued()
