"""Deadlines of calls, which calls are repeated, and the delays between attempts; training runs: call_recovery.py."""

import asyncio
import math
import random
import time

from seqloom._retry_budget import RetryBudget
from seqloom.errors import InvalidArgument, Overloaded, SeqloomError, Unavailable

INITIAL_BACKOFF, MAX_BACKOFF = 0.1, 2.0  # seconds
DEFAULT_RETRIES = 5  # of a client that sets none: after Overloaded, and while it has never reached its server


def remaining(deadline: float) -> float | None:
    """Returns the seconds until a deadline on time.monotonic's clock, at least 0; None for no limit."""
    return None if deadline == math.inf else max(0.0, deadline - time.monotonic())


def until(deadline: float) -> asyncio.Timeout:
    """Returns an asynchronous context manager that raises TimeoutError at a deadline."""
    return asyncio.timeout(remaining(deadline))


class Backoff:
    """Exponentially growing delays between the attempts of one call, with jitter, so that callers do not come together.

    After Overloaded the delay is never shorter than `retry_after`, and a repeat takes one of the client's budget. What
    the client itself has refused is not repeated, so that its caller hears of it at once, and costs no repeat.
    retries: how often the call may be repeated; None for a call that must be done in the end, which waits for the
    longest delay if the budget is spent. deadline: on time.monotonic's clock; no attempt starts after it. patient:
    repeats after another error than Overloaded are not counted, so that a call outlasts the restart of a server.
    """

    def __init__(self, retries: int | None, deadline: float, budget: RetryBudget, *, patient: bool = False) -> None:
        self._retries = retries
        self._patient = patient
        self._deadline = deadline
        self._budget = budget
        self._failed = 0
        self._taken = False  # whether the last attempt was a repeat of the budget
        self._longest = INITIAL_BACKOFF

    def delay(self, error: SeqloomError) -> float:
        """Returns the seconds to wait before the next attempt; raises `error` if there should be none."""
        if isinstance(error, Overloaded) and not error.sent:
            if self._taken:
                self._budget.give_back()
            raise error
        counts = isinstance(error, Overloaded) or not self._patient
        if counts and self._retries is not None and self._failed >= self._retries:
            raise error
        delay = self._longest * random.uniform(0.5, 1.0)
        if isinstance(error, Overloaded):
            delay = max(delay, error.retry_after * random.uniform(1.0, 1.25))
        if time.monotonic() + delay >= self._deadline:
            raise error
        self._taken = isinstance(error, Overloaded) and self._budget.take()
        if isinstance(error, Overloaded) and not self._taken:
            if self._retries is not None:
                raise error
            delay = max(delay, MAX_BACKOFF * random.uniform(0.5, 1.0))
        self._failed += counts
        self._longest = min(MAX_BACKOFF, 2 * self._longest)
        return delay


def backoff_of(retries: int | None, deadline: float, budget: RetryBudget, *, reached: bool) -> Backoff:
    """Returns the delays of a call with the setting `retries` of its client, None by default.

    reached: whether the client has ever had an answer; else its address may be wrong, of which its user hears soon.
    """
    if retries is None:
        return Backoff(DEFAULT_RETRIES, deadline, budget, patient=reached)
    return Backoff(retries, deadline, budget)


def may_repeat(error: SeqloomError, *, read_only: bool) -> bool:
    """Whether a call may be repeated after this error. read_only: whether the call changes nothing on the server."""
    return isinstance(error, Overloaded) or (read_only and isinstance(error, Unavailable))


def checked_seconds(value: object, name: str) -> float:
    """Returns `value` as seconds above 0, or math.inf. Raises InvalidArgument for the argument `name`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InvalidArgument(f"{name}: is {value!r}: expected seconds above 0, or math.inf for no limit")
    return float(value)
