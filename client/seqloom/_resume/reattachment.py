"""How a session or a group returns after its call broke: it is opened again, with growing pauses, until it is too late.

Everything here runs on one event loop.
"""

import asyncio
import math
import time
from typing import Protocol

from seqloom._retries import Backoff
from seqloom._retry_budget import RetryBudget
from seqloom._streaming.call_pauses import CallPauses, pause
from seqloom.errors import (
    Cancelled,
    Internal,
    Overloaded,
    PermissionDenied,
    SeqloomError,
    StreamLost,
    Unauthenticated,
    Unavailable,
)

_QUICKLY = 1.0  # seconds after its return, within which one that is lost again returns with a pause


class Returning(Protocol):
    """What returns: a session or a group."""

    def reopen(self) -> None:
        """Opens it on a new call. Raises SeqloomError if there can be none."""

    def give_up(self, error: SeqloomError) -> None:
        """Ends it with an error."""

    @property
    def progress(self) -> int:
        """The answers that its callers have had so far."""

    @property
    def waits_until(self) -> float:
        """The latest deadline, by time.monotonic(), of those who wait for it and have one; else -inf."""


class Reattachment:
    """The return of one session or group. timeout: seconds for which it is tried, and as long as somebody waits.

    lost: why it is on no call, or not opened there yet; None while it is.
    """

    def __init__(self, returning: Returning, pauses: CallPauses, timeout: float) -> None:
        self.lost: SeqloomError | None = None
        self._returning = returning
        self._pauses = pauses
        self._timeout = timeout
        self._since = self._returned_at = -math.inf
        self._progress = 0  # when it had returned
        self._quickly = 0  # how often it was lost again as soon as it had returned, and answered nothing
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def takes(self, error: SeqloomError) -> bool:
        """Returns whether it returns after this error; while it does, it also waits for room on the server."""
        return isinstance(error, Unavailable) or (self.lost is not None and isinstance(error, Overloaded))

    def lose(self, error: SeqloomError) -> None:
        """Begins to return, or goes on with that."""
        if self.lost is None:
            self._since = time.monotonic()
            in_vain = self._since - self._returned_at < _QUICKLY and self._returning.progress == self._progress
            self._quickly = self._quickly + 1 if in_vain else 0
        self.lost = error.with_traceback(None)
        self._changed.set()
        if self._task is None:
            self._pauses.resuming.add(self)
            self._task = asyncio.create_task(self._run())

    def attached(self) -> None:
        """Ends the return: the server has opened it again."""
        self.lost = None
        self._returned_at, self._progress = time.monotonic(), self._returning.progress
        self._changed.set()

    def final(self, error: SeqloomError) -> SeqloomError:
        """Returns what the callers are told if it cannot return because of this error."""
        if self.lost is None or isinstance(error, Cancelled | Unauthenticated | PermissionDenied | StreamLost):
            return error
        return StreamLost(
            f"the stream was lost and cannot be resumed: {error.message}",
            reason=error.reason,
            request_id=error.request_id,
        )

    def give_up(self, error: SeqloomError) -> None:
        """Ends the return, and what should return, with an error."""
        self._returning.give_up(error)

    def stop(self) -> None:
        """Ends the return, as what should return has ended."""
        self._pauses.resuming.discard(self)
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._task = None

    async def _run(self) -> None:
        try:
            backoff = Backoff(None, math.inf, RetryBudget())  # its own: reconnecting is not counted
            if self._quickly:
                await asyncio.sleep(pause(self._quickly))
            while True:
                await self._pauses.over()
                self._changed.clear()
                self._returning.reopen()
                await self._until_changed()
                if self.lost is None:
                    break
                await asyncio.sleep(max(0.0, min(backoff.delay(self.lost), self._seconds_left)))
                self._check_time()
            self._task = None
            self._pauses.resuming.discard(self)
        except SeqloomError as error:
            self.give_up(error)
        except Exception as bug:
            self.give_up(Internal(f"the stream could not be resumed: {bug!r}", reason="UNSENT"))

    async def _until_changed(self) -> None:
        while not self._changed.is_set():
            try:
                async with asyncio.timeout(None if self._seconds_left == math.inf else self._seconds_left):
                    await self._changed.wait()
            except TimeoutError:
                self._check_time()

    @property
    def _seconds_left(self) -> float:
        return max(self._since + self._timeout, self._returning.waits_until) - time.monotonic()

    def _check_time(self) -> None:
        """Raises StreamLost if it is too late to return."""
        if self._seconds_left <= 0 and self.lost is not None:
            raise StreamLost(
                f"the stream was lost and could not be resumed in {self._timeout:g} s: {self.lost.message}",
                reason=self.lost.reason,
                request_id=self.lost.request_id,
            )
