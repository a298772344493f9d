"""Sees streams that move in step: all had their answers out of one slice, and all are back for the next.

They and the device then take turns, and each is idle while the other works. Where half of them run first, the callers
of these work while the others run, and the halves stay apart: what is back is no longer what the last slice had.
Streams that wait for a clock, and not for their answers, come together again; they cost a slice more every other time,
on a device that was idle for longer than that.
"""

from seqloom_server.engine.core.sequence import Op, Sequence, Slice
from seqloom_server.engine.scheduling.slice_fit import Lengths


class Lockstep:
    """Told of every slice that begins, and of all device work that ends. least: streams that are worth two slices."""

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

    def found(self, slice_: Slice, candidates: list[Sequence], lengths: Lengths, now: float) -> bool:
        """Whether those who could join the slice, each by so many steps, should be two slices.

        The device must have been idle for longer than what another slice costs.
        """
        if slice_.members or len(candidates) < self._least or candidates[0].op is not Op.STREAM:
            return False
        idle = now - self._ended
        return idle > slice_.weights.cost.seconds(int(lengths.max()), 0) and all(
            sequence.last_slice == self._slice for sequence in candidates
        )
