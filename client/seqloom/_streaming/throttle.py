"""Refuses calls in the client while the server refuses most of them, so that refusing does not become its load.

As in chapter 21 of "Site Reliability Engineering" (Beyer and others, 2016): of r calls in the last while, of which the
server accepted a, the next one is refused with probability (r - K a) / (r + 1). The server gets about K times as many
as it accepts, and one or two a second more, which is all that one gets that accepts none: a call is always sent if none
was for a second. By K alone it would be a while until such a server got all calls again, as what it gets doubles every
1.4 seconds; so all are sent once it has accepted one and, for a second, refused none.
"""

import math
import random
import time

from seqloom.errors import Overloaded

_K = 1.5
_SECONDS = 1.0  # after which a call counts for a third
_LEAST_CALLS = 20.0  # in the last while; a few refusals say nothing about the next call
_OVERLOADED_SECONDS = 1.0  # that a refusal says something about the server
_PROBE_SECONDS = 1.0  # without a call that was sent, after which one is


class Throttle:
    """The calls of one client for one model in the last while."""

    def __init__(self) -> None:
        self._calls = self._accepted = 0.0
        self._last = time.monotonic()
        self._sent_at = self._refused_at = -math.inf
        self._retry_after, self._reason = 0.0, ""  # as last told; not the error, whose traceback holds the frames

    @property
    def overloaded(self) -> bool:
        """Whether the server has refused a call in the last second, or will until a time that it has said."""
        return time.monotonic() - self._refused_at < max(_OVERLOADED_SECONDS, self._retry_after)

    def check(self) -> None:
        """Raises Overloaded, with the server's last `retry_after`, if a call should not be sent."""
        self._age()
        probe = self._calls < _LEAST_CALLS or self._last - self._sent_at >= _PROBE_SECONDS
        if not probe and random.random() * (self._calls + 1) < self._calls - _K * self._accepted:
            self._calls += 1
            raise Overloaded(
                "the server refuses most calls: this one was not sent",
                retry_after=self._retry_after,
                reason=self._reason,
            )
        self._sent_at = self._last

    def accepted(self) -> None:
        """Counts a call that the server has not refused, as soon as that is known."""
        self._age()
        self._calls += 1
        self._accepted += 1
        if self._last - self._refused_at >= _OVERLOADED_SECONDS:
            self._calls = self._accepted

    def refused(self, error: Overloaded) -> None:
        """Counts a call that the server has refused."""
        self._age()
        self._calls += 1
        self._refused_at, self._retry_after, self._reason = self._last, error.retry_after, error.reason

    def _age(self) -> None:
        now = time.monotonic()
        kept = math.exp((self._last - now) / _SECONDS)
        self._last, self._calls, self._accepted = now, self._calls * kept, self._accepted * kept
