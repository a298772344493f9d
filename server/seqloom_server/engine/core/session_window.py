"""The rules of one caller's session: what may come in which order, and how much ahead of what was acknowledged."""

import functools

import numpy as np

from seqloom_server.engine.core.sequence import Array, Chunk, Sequence
from seqloom_server.errors import Reason, ServerError, invalid


class SessionWindow:
    """A session that is open: its sequence, and the counts that bound it.

    window: the most steps received and not acknowledged. answered: steps whose outputs went out; its owner counts them.
    """

    __slots__ = ("_empty", "acknowledged", "answered", "ended", "received", "sequence", "window")

    def __init__(self, sequence: Sequence, window: int, empty: Array) -> None:
        self.sequence = sequence
        self.window = window
        self.received = 0
        self.acknowledged = 0
        self.answered = 0
        self.ended = False
        self._empty = empty

    def chunks(self, frames: Array | None, *, reset: bool, end: bool, acknowledged: int, now: float) -> list[Chunk]:
        """Returns the chunks that one entry adds to the sequence; frames are [k, D], or None where none were sent.

        Raises ServerError SESSION_ENDED, WINDOW_EXCEEDED, or INVALID_FIELD for an acknowledgement that cannot be.
        """
        if self.ended:
            raise ServerError(Reason.SESSION_ENDED, "the session has ended: it takes nothing more")
        if acknowledged:
            if acknowledged > self.answered:
                raise invalid(
                    "entries.acknowledged_steps", f"is {acknowledged}: only {self.answered} steps were answered so far"
                )
            self.acknowledged = max(self.acknowledged, acknowledged)
        if frames is not None:
            ahead = self.received + len(frames) - self.acknowledged
            if ahead > self.window:
                raise ServerError(
                    Reason.WINDOW_EXCEEDED,
                    f"{ahead} steps would be unacknowledged: the window is {self.window}; receive outputs first",
                )
            self.received += len(frames)
        self.ended = end
        if frames is None and not (reset or end):
            return []
        silent = frames is None
        rows = self._empty if frames is None else frames
        return [Chunk(rows, now, reset=reset, last=end, silent=silent)]


@functools.cache
def empty_frames(width: int, dtype: str) -> Array:
    """[0, width]: the frames of an entry that has none, the same for all."""
    return np.empty((0, width), dtype)


def is_idle(sequence: Sequence, now: float, idle_seconds: float) -> bool:
    """Whether nothing has come or run for so long. Idle time does not run while work is queued or in flight."""
    return not sequence.ready and not sequence.in_flight and now - sequence.last_active > idle_seconds
