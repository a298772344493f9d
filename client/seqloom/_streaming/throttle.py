"""Refuses calls in the client while the server refuses many like them, so that refusing does not become its load.

As in chapter 21 of "Site Reliability Engineering" (Beyer and others, 2016): of r calls in the last while, of which the
server accepted a, the next one is refused with probability (r - K a) / (r + 1). So nothing is refused here while the
server accepts more than two thirds. It gets about K times as many as it accepts, and one or two a second more, which is
all that one gets that accepts none: a call is always sent if none was for a second. By K alone it would be a while
until such a server got all calls again, as what it gets doubles every 1.4 seconds; so all are sent once it has accepted
one and, for a second, refused none.

A server refuses what would be late, so a refusal says nothing about a call that has more time, or is shorter. Only
calls are counted, and refused here, that demand at least as much as one that was refused lately; and of those that were
not accepted only the ones count that demand not much more, or a hasty flood would spoil it for patient calls of which
a server refuses one now and then.
"""

import math
import random
import time

from seqloom.errors import Overloaded

_K = 1.5
_SECONDS = 1.0  # after which a call counts for a third
_LEAST_CALLS = 20.0  # in the last while; a few refusals say nothing about the next call
_OVERLOADED_SECONDS = 1.0  # that a refusal says something about the server
_AT_A_TIME = 32  # accepted calls
_PROBE_SECONDS = 1.0  # without a call that was sent, after which one is
_REMEMBERED_SECONDS = 1.5  # that a refused call is remembered, or up to twice that; longer than until the next probe
_ALIKE = 1.1  # times the timeout: equal timeouts differ a little by the time that calls are sent
_ONE_LOAD = 2  # classes of lengths: what is four times as long counts as well, as recordings of one kind differ so
_NOTHING = 1e-3  # so much of a call is no longer counted


class Throttle:
    """The calls of one client for one model in the last while.

    seconds, steps: what a call demands, its timeout and the length of all its sequences. quiet: nothing was refused
    lately: the usual case, which must cost nothing, so that calls are counted some at a time.
    """

    def __init__(self) -> None:
        self.quiet = True
        self._accepted = 0.0
        self._others: dict[tuple[int, int], float] = {}  # refused by the server or here, by size and patience
        self._uncounted = 0  # accepted calls
        self._last = self._since = 0.0
        # the longest timeout of those that were refused, by their size: now, and in the time before
        self._refused: dict[int, float] = {}
        self._refused_before: dict[int, float] = {}
        self._sent_at = self._refused_at = self._overloaded_until = -math.inf
        self._retry_after, self._reason = 0.0, ""  # as last told; not the error, whose traceback holds the frames

    @property
    def overloaded(self) -> bool:
        """Whether the server has refused a call in the last second, or will until a time that it has said."""
        return not self.quiet and time.monotonic() < self._overloaded_until

    def check(self, seconds: float, steps: int) -> None:
        """Raises Overloaded, with the server's last `retry_after`, if a call should not be sent."""
        if self.quiet:
            return
        self._age()
        if not self._demands_as_much(seconds, steps):
            return
        size, patience = demand = _size(steps), _patience(seconds)
        calls = self._accepted + sum(
            count for (its, long), count in self._others.items() if its <= size + _ONE_LOAD and long >= patience
        )
        probe = calls < _LEAST_CALLS or self._last - self._sent_at >= _PROBE_SECONDS
        if not probe and random.random() * (calls + 1) < calls - _K * self._accepted:
            self._others[demand] = self._others.get(demand, 0.0) + 1
            raise Overloaded(
                "the server refuses many calls like this one: it was not sent",
                retry_after=self._retry_after,
                reason=self._reason,
                sent=False,
            )
        self._sent_at = self._last

    def accepted(self, seconds: float, steps: int) -> None:
        """Counts a call that the server has not refused, as soon as that is known."""
        if self.quiet:
            self._uncounted += 1
            if self._uncounted == _AT_A_TIME:
                self._count()
            return
        self._age()
        counts = self._demands_as_much(seconds, steps)
        if counts:
            self._accepted += 1
        if self._last - self._refused_at >= (_OVERLOADED_SECONDS if counts else 2 * _REMEMBERED_SECONDS):
            self._forget()

    def refused(self, error: Overloaded, seconds: float, steps: int) -> None:
        """Counts a call that the server has refused."""
        self._count()  # else the first few refusals would seem to be all there was
        self.quiet = False
        size, _ = demand = _size(steps), _patience(seconds)
        self._others[demand] = self._others.get(demand, 0.0) + 1
        self._refused[size] = max(seconds, self._refused.get(size, 0.0))
        self._refused_at, self._retry_after, self._reason = self._last, error.retry_after, error.reason
        self._overloaded_until = self._last + max(_OVERLOADED_SECONDS, error.retry_after)

    def _demands_as_much(self, seconds: float, steps: int) -> bool:
        """Whether a call of no more than its steps was refused lately although it had as much time."""
        size = _size(steps)
        return any(
            refused <= size and seconds <= _ALIKE * longest
            for remembered in (self._refused, self._refused_before)
            for refused, longest in remembered.items()
        )

    def _age(self) -> None:
        now = time.monotonic()
        kept = math.exp((self._last - now) / _SECONDS)
        self._last, self._accepted = now, self._accepted * kept
        if self._others:
            aged = ((demand, count * kept) for demand, count in self._others.items())
            self._others = {demand: count for demand, count in aged if count > _NOTHING}
        if now - self._since >= _REMEMBERED_SECONDS:
            forgotten = now - self._since >= 2 * _REMEMBERED_SECONDS
            self._refused_before = {} if forgotten else self._refused
            self._refused, self._since = {}, now

    def _count(self) -> None:
        self._age()
        self._accepted += self._uncounted
        self._uncounted = 0

    def _forget(self) -> None:
        self.quiet = True
        self._others, self._refused, self._refused_before = {}, {}, {}


def _size(steps: int) -> int:
    """Returns the class of a length. Each is twice as long as the one before: few calls have just as many steps."""
    return steps.bit_length()


def _patience(seconds: float) -> int:
    """Returns the class of a timeout. Each is twice as long as the one before, and 1 s is in the middle of one."""
    return round(math.log2(min(max(seconds, 1e-6), 1e6)))
