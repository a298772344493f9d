"""When a client may start its next call for sessions that were lost: one for all, so that they come together."""

import asyncio
import math
import random
import time
import weakref
from typing import Protocol

from seqloom._retries import INITIAL_BACKOFF, MAX_BACKOFF
from seqloom.errors import SeqloomError


class Lost(Protocol):
    """What was lost and is to be resumed."""

    def give_up(self, error: SeqloomError) -> None:
        """Ends it with an error."""


class CallPauses:
    """The pauses of one client. open: what it has that can be resumed. resuming: what was lost and returns now."""

    def __init__(self) -> None:
        self.open: weakref.WeakSet[object] = weakref.WeakSet()
        self.resuming: set[Lost] = set()
        self._not_before = -math.inf
        self._broken = 0

    def broken(self) -> None:
        """Notes that a call broke. If it had answered, the next one may start at once."""
        self._not_before = time.monotonic() + (pause(self._broken) if self._broken else 0.0)
        self._broken += 1

    def answered(self) -> None:
        """Notes that a call is answered by the server."""
        self._broken = 0

    async def over(self) -> None:
        """Waits until a call may be started."""
        while (seconds := self._not_before - time.monotonic()) > 0:  # noqa: ASYNC110 - it may be put off meanwhile
            await asyncio.sleep(seconds)

    def close(self, error: SeqloomError) -> None:
        """Gives up all that was lost."""
        for each in list(self.resuming):
            each.give_up(error)


def pause(times: int) -> float:
    """Returns the seconds to wait after so many failures, with jitter."""
    return min(MAX_BACKOFF, INITIAL_BACKOFF * 2.0 ** min(times - 1, 10)) * random.uniform(0.5, 1.0)
