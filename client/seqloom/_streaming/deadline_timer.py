"""One timer for the deadlines of all waits on an event loop.

Nearly every wait ends long before its deadline, so a timer for each would nearly always be created to be cancelled.
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import TypeAlias

Deadline: TypeAlias = "float | Callable[[], float]"
"""A time on time.monotonic's clock, or a function that returns it, for a deadline that moves during the wait."""

_SPACING = 0.01  # seconds, at least, between two checks of all deadlines


class Waiter:
    """A wait for `condition`, which is checked when it may have become true. woken: done when the wait is over."""

    __slots__ = ("_deadline", "condition", "woken")

    def __init__(self, condition: Callable[[], bool], deadline: Deadline) -> None:
        self.condition = condition
        self._deadline = deadline
        self.woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def deadline(self) -> float:
        return self._deadline() if callable(self._deadline) else self._deadline

    def wake(self) -> None:
        """Ends the wait."""
        if not self.woken.done():
            self.woken.set_result(None)

    def expire(self) -> None:
        """Ends the wait with TimeoutError."""
        if not self.woken.done():
            self.woken.set_exception(TimeoutError())


class DeadlineTimer:
    """The deadlines of many waiters, under one timer."""

    def __init__(self) -> None:
        self._waiters: set[Waiter] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = math.inf  # on time.monotonic's clock

    def watch(self, waiter: Waiter) -> None:
        """Expires a waiter at its deadline, unless it is removed before by forget()."""
        deadline = waiter.deadline
        if deadline == math.inf:
            return
        self._waiters.add(waiter)
        if deadline < self._fires_at:
            self._schedule(deadline)

    def forget(self, waiter: Waiter) -> None:
        """Removes a waiter."""
        self._waiters.discard(waiter)

    def stop(self) -> None:
        """Removes all waiters and cancels the timer."""
        self._waiters.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._fires_at = None, math.inf

    def _schedule(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fires_at = when
        seconds = max(0.0, when - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._timer, self._fires_at = None, math.inf
        now = time.monotonic()
        waiting = [(waiter.deadline, waiter) for waiter in self._waiters]
        for deadline, waiter in waiting:
            if deadline <= now:
                waiter.expire()
        following = min((deadline for deadline, _ in waiting if deadline > now), default=math.inf)
        if following < math.inf:
            self._schedule(max(following, now + _SPACING))
