"""The flow control of one session: the order of its entries, and a window of unacknowledged steps."""

import functools

import numpy as np

from seqloom_server.engine.core.sequence import Array, Chunk, Sequence
from seqloom_server.errors import Reason, ServerError, invalid


class SessionWindow:
    """The window of one open session.

    size: the most steps received and not acknowledged. answered: steps whose outputs were sent; the caller of this
    class counts them. begun: steps before its first, of one that is resumed.
    """

    __slots__ = ("_empty", "acknowledged", "answered", "ended", "received", "sequence", "size")

    def __init__(self, sequence: Sequence, size: int, empty: Array, begun: int = 0) -> None:
        self.sequence = sequence
        self.size = size
        self.received = begun
        self.acknowledged = begun
        self.answered = begun
        self.ended = False
        self._empty = empty

    def chunks(
        self, frames: Array | None, *, reset: bool, end: bool, acknowledged: int, now: float, asks: bool = False
    ) -> list[Chunk]:
        """Returns the chunks that one entry adds to the sequence; frames: [k, D], or None if the entry has none.

        asks: whether it asks for the state. Raises ServerError SESSION_ENDED, WINDOW_EXCEEDED, or INVALID_FIELD for an
        acknowledgement of unsent outputs.
        """
        self.acknowledge(acknowledged)
        if frames is not None:
            self.receive(len(frames))
        self.ended = end
        if frames is None and not (reset or end or asks):
            return []
        silent = frames is None
        rows = self._empty if frames is None else frames
        return [Chunk(rows, now, reset=reset, last=end, silent=silent, asks=asks)]

    def asking(self, now: float) -> list[Chunk]:
        """Returns the chunks that ask for the state behind all that has come; none once the end has."""
        return [] if self.ended else [Chunk(self._empty, now, silent=True, asks=True)]

    def acknowledge(self, steps: int, field: str = "entries.acknowledged_steps") -> None:
        """Counts that the caller has consumed so many steps. Raises ServerError SESSION_ENDED or INVALID_FIELD."""
        if self.ended:
            raise ServerError(Reason.SESSION_ENDED, "the session has ended: expected no more entries for it")
        if steps:
            if steps > self.answered:
                raise invalid(
                    field,
                    f"is {steps}: expected at most {self.answered}, the steps whose outputs were sent",
                )
            self.acknowledged = max(self.acknowledged, steps)

    def receive(self, steps: int, *, whole: bool = False) -> None:
        """Counts steps that have come. whole: they fit, however many they are, if none before is unacknowledged.

        Raises ServerError WINDOW_EXCEEDED.
        """
        ahead = self.received + steps - self.acknowledged
        if steps and ahead > self.size and not (whole and ahead == steps):
            raise ServerError(
                Reason.WINDOW_EXCEEDED,
                f"{ahead} steps would be unacknowledged: expected at most {self.size}, the session's window; "
                "receive outputs before sending more",
            )
        self.received += steps


@functools.cache
def empty_frames(width: int, dtype: str) -> Array:
    """Returns an array [0, width] for entries without frames, one for all."""
    return np.empty((0, width), dtype)


def is_idle(sequence: Sequence, now: float, idle_seconds: float) -> bool:
    """Returns whether a sequence has been idle for too long; queued work and work in flight are not idle time."""
    return not sequence.ready and not sequence.in_flight and now - sequence.last_active > idle_seconds
