"""The rate that a live session was promised its delay for: what it may send at once, and what waits as elastic."""

from seqloom_server.engine.core.sequence import Sequence

_BURST_SECONDS = 1.0  # of frames that a session may send sooner than its rate says


def is_kept(sequence: Sequence, now: float) -> bool:
    """Whether a session has a rate, and what it sends next is within it."""
    return bool(sequence.rate) and sequence.paid_until <= now + _BURST_SECONDS


def allowed(sequence: Sequence, most: int, now: float) -> int:
    """Returns the steps that may run at once: of a session that goes first because of its rate, what that allows."""
    if not sequence.on_rate:
        return most
    return max(1, min(most, int((now + _BURST_SECONDS - max(now, sequence.paid_until)) * sequence.rate)))


def charge(sequence: Sequence, steps: float, now: float) -> None:
    """Counts steps that run now."""
    if sequence.rate:
        sequence.paid_until = max(sequence.paid_until, now) + steps / sequence.rate
