"""What a live stream keeps to be resumed: the state of its last snapshot, and everything that was sent since."""

import collections
from dataclasses import dataclass

from seqloom._resume.snapshot_interval import SnapshotInterval
from seqloom.tensors import Array


@dataclass(slots=True)
class Kept:
    """An entry: frames [k, D] from the step `start` on, or None for the end. chunk: the number of their chunk."""

    start: int
    frames: Array | None
    chunk: int
    reset: bool = False
    end: bool = False

    @property
    def steps(self) -> int:
        return 0 if self.frames is None else len(self.frames)

    @property
    def size(self) -> int:
        """The bytes of its frames."""
        return 0 if self.frames is None else self.frames.nbytes


class KeptFrames:
    """What is kept of one stream. state: a serialized State, b"" for zeros, after `steps` steps. size: bytes of frames.

    unsent: entries that were not sent on the present call.
    """

    def __init__(self, state: bytes, interval: SnapshotInterval) -> None:
        self.state = state
        self.steps = 0
        self.size = 0
        self.unsent: collections.deque[Kept] = collections.deque()
        self._sent: collections.deque[Kept] = collections.deque()
        self._interval = interval
        self._spare: list[Array] = []  # arrays that are not needed any more

    def copy_of(self, frames: Array) -> Array:
        """Returns a copy of frames, in an array that was used before if there is one of this shape.

        New memory for each would cost more than the copy: it is given back to the system whenever a snapshot comes.
        """
        while self._spare:
            spare = self._spare.pop()
            if spare.shape == frames.shape:
                spare[...] = frames
                return spare
        return frames.copy()

    def add(self, entry: Kept) -> None:
        """Adds an entry that is to be sent."""
        self.unsent.append(entry)
        self.size += entry.size

    def send_at_once(self, entry: Kept, size: int) -> bool:
        """Adds an entry, of frames of so many bytes, that is sent; returns whether it should ask for a snapshot."""
        self._sent.append(entry)
        self.size += size
        return self._interval.sent(size)

    @property
    def room(self) -> int:
        """The bytes that may be kept beside those that are, for sure."""
        return self._interval.most - self.size

    def has_room(self, size: int) -> bool:
        """Returns whether a chunk of so many bytes may be kept as well."""
        return self._interval.has_room(self.size, size)

    def send_next(self, most_steps: int) -> tuple[Kept, bool]:
        """Moves the next entry to those that were sent, or `most_steps` of it; returns it.

        And whether it should ask for a snapshot.
        """
        entry = self.unsent.popleft()
        if entry.frames is not None and len(entry.frames) > most_steps:
            rest = Kept(entry.start + most_steps, entry.frames[most_steps:], entry.chunk)
            self.unsent.appendleft(rest)
            entry.frames = entry.frames[:most_steps]
        self._sent.append(entry)
        return entry, self._interval.sent(entry.size) and not entry.end

    def rebase(self, steps: int, state: bytes, answered: int) -> None:
        """Goes on from a snapshot after so many steps. answered: how many chunks were answered before it came."""
        self.steps, self.state = steps, state
        while self._sent:
            first = self._sent[0]
            rows = first.steps
            # chunks of no steps were handled before the snapshot if they were answered before it
            if first.end or first.start + rows > steps or (not rows and first.chunk >= answered):
                break
            self._sent.popleft()
            if first.frames is not None:
                self.size -= first.frames.nbytes
                if first.frames.base is None:  # it was written, as the server has it
                    self._spare.append(first.frames)
        if self._sent and self._sent[0].start < steps and (first := self._sent[0]).frames is not None:
            past = first.frames[: steps - first.start]
            self.size -= past.nbytes
            first.start, first.frames, first.reset = steps, first.frames[len(past) :], False

    def restart(self, answered: int) -> bool:
        """Lets everything since the snapshot be sent again, but for chunks of no steps that were answered.

        Returns whether one of these had reset the state and nothing was sent since, so that this is still to be done.
        """
        entries = [*self._sent, *self.unsent]
        self._sent.clear()
        self.unsent.clear()
        reset = False
        for entry in entries:
            if not entry.end and not entry.steps and entry.chunk < answered:
                reset = reset or entry.reset
                continue
            entry.reset, reset = entry.reset or reset, False
            self.unsent.append(entry)
        self._interval.restart()
        return reset

    def clear(self) -> None:
        """Drops everything, as the stream has ended."""
        self._sent.clear()
        self.unsent.clear()
        self._spare.clear()
        self.size = 0
