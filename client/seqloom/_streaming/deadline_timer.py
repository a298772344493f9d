"""Who waits on one event loop for something to become so, and until when: one timer watches over all of them.

Nearly every wait is over long before its deadline, so that a timer for each would be made only to be taken back.
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import TypeAlias

Deadline: TypeAlias = "float | Callable[[], float]"
"""On time.monotonic's clock; a function tells one that moves while somebody waits."""

_SPACING = 0.01  # seconds at least from one look at all deadlines to the next


class Waiter:
    """One that waits: until `condition` holds, which is looked at when it may have become so."""

    __slots__ = ("_deadline", "condition", "woken")

    def __init__(self, condition: Callable[[], bool], deadline: Deadline) -> None:
        self.condition = condition
        self._deadline = deadline
        self.woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def deadline(self) -> float:
        return self._deadline() if callable(self._deadline) else self._deadline

    def wake(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)

    def expire(self) -> None:
        if not self.woken.done():
            self.woken.set_exception(TimeoutError())


class Clock:
    """The deadlines of many waiters."""

    def __init__(self) -> None:
        self._waiters: set[Waiter] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._rings = math.inf  # when the timer does

    def watch(self, waiter: Waiter) -> None:
        """Lets it expire at its deadline, unless it is forgotten before."""
        deadline = waiter.deadline
        if deadline == math.inf:
            return
        self._waiters.add(waiter)
        if deadline < self._rings:
            self._set(deadline)

    def forget(self, waiter: Waiter) -> None:
        """It waits no more."""
        self._waiters.discard(waiter)

    def stop(self) -> None:
        """Watches over nobody any more."""
        self._waiters.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._rings = None, math.inf

    def _set(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings = when
        seconds = max(0.0, when - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(seconds, self._ring)

    def _ring(self) -> None:
        self._timer, self._rings = None, math.inf
        now = time.monotonic()
        waiting = [(waiter.deadline, waiter) for waiter in self._waiters]
        for deadline, waiter in waiting:
            if deadline <= now:
                waiter.expire()
        following = min((deadline for deadline, _ in waiting if deadline > now), default=math.inf)
        if following < math.inf:
            self._set(max(following, now + _SPACING))
