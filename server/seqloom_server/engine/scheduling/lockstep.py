"""Detects streams in lockstep: all were in the last slice, received their outputs, and sent their next frames.

Callers and device then take turns, and each is idle while the other works. If half of the streams run first, their
callers work while the other half runs, and the halves stay apart: the streams that wait are no longer those of the last
slice. Streams that send by a clock, whatever they receive, come together again; they cost one slice more every other
time, on a device that was idle for longer than that.
"""

from seqloom_server.engine.core.sequence import Op, Sequence, Slice
from seqloom_server.engine.scheduling.slice_fit import Lengths


class Lockstep:
    """Tracks which slice each stream was in last, and when the device became idle. least: streams that are halved."""

    def __init__(self, least: int) -> None:
        self._least = least
        self._slice = 0
        self._ended = 0.0

    def begun(self, slice_: Slice) -> None:
        self._slice += 1
        for member in slice_.members:
            member.sequence.last_slice = self._slice

    def ended(self, now: float) -> None:
        self._ended = now

    def should_halve(self, slice_: Slice, candidates: list[Sequence], lengths: Lengths, now: float) -> bool:
        """Returns whether the candidates for a slice, of [N] steps each, should run as two slices.

        The device must have been idle for longer than another slice costs.
        """
        if slice_.members or len(candidates) < self._least or candidates[0].op is not Op.STREAM:
            return False
        idle = now - self._ended
        return idle > slice_.weights.cost.seconds(int(lengths.max()), 0) and all(
            sequence.last_slice == self._slice for sequence in candidates
        )
