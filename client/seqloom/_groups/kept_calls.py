"""What a stream group keeps to be resumed: the states of its last snapshot, and the calls since that did not fail."""

import collections
from dataclasses import dataclass

import numpy as np

from seqloom import tensors
from seqloom._groups.group_answers import Answer
from seqloom._resume.snapshot_interval import SnapshotInterval
from seqloom.tensors import Array
from seqloom.types import State
from seqloom.v1 import inference_service_pb2


@dataclass(slots=True, eq=False)
class KeptCall:
    """A call with frames [w, k, D] of some streams, None for all; or without frames.

    answer: what its caller waits for, or has had. due: what is due on the present call of the connection: the same, or
    one that nobody sees, if its caller has had it. begins: whether it only sets the states to begin with.
    """

    message: inference_service_pb2.GroupRequest
    frames: Array | None
    streams: Array | None
    answer: Answer
    due: Answer
    begins: bool = False

    @property
    def frames_bytes(self) -> int:
        return 0 if self.frames is None else self.frames.nbytes

    @property
    def size(self) -> int:
        """The bytes of its frames, and of states that it sets."""
        return self.frames_bytes + (self.message.set.ByteSize() if self.message.HasField("set") else 0)


class KeptCalls:
    """What is kept of a group of `count` streams. size: bytes. unsent: calls that were not sent again yet.

    state: None as long as the group has begun with zeros. clock: the steps of a stream that was in every call.
    """

    def __init__(self, count: int) -> None:
        self.state: State | None = None
        self.clock = 0
        self.size = 0
        self.unsent: collections.deque[KeptCall] = collections.deque()
        self._sent: collections.deque[KeptCall] = collections.deque()
        self._steps = np.zeros(count, np.int64)  # of each stream
        self._spare: list[Array] = []  # arrays that are not needed any more

    def copy_of(self, frames: Array) -> Array:
        """Returns a copy of frames, in an array that was used before if there is one of this shape."""
        while self._spare:
            spare = self._spare.pop()
            if spare.shape == frames.shape:
                spare[...] = frames
                return spare
        return frames.copy()

    def add(self, call: KeptCall) -> None:
        """Adds a call that is to be sent."""
        self.unsent.append(call)
        self.size += call.size

    def sent(self, call: KeptCall) -> None:
        """Adds a call that was sent."""
        self._sent.append(call)

    def has_room(self, size: int, interval: SnapshotInterval) -> bool:
        """Returns whether a call of so many bytes of frames may be kept as well."""
        return interval.has_room(self.size, size)

    def failed(self, answer: Answer) -> None:
        """Forgets a call that has failed: nothing of it has run."""
        for call in self._sent:
            if call.due is answer:
                self._sent.remove(call)
                self.size -= call.size
                break

    def rebase(self, state: State) -> None:
        """Goes on from the states behind all calls that are answered, unless those to begin with are not set yet."""
        if any(call.begins and not call.due.ready for call in [*self._sent, *self.unsent]):
            return
        self.state = state
        while self._sent and self._sent[0].due.ready:
            call = self._sent.popleft()
            self.size -= call.size
            if call.frames is not None and call.frames.base is None:  # it was written, as the server has it
                self._spare.append(call.frames)
            self._steps[slice(None) if call.streams is None else call.streams] += call.answer.steps
            self.clock += call.answer.steps

    def restart(self) -> list[KeptCall]:
        """Lets all calls be sent again; returns them, in order, each with a new `due` where it was answered."""
        calls = [call for call in [*self._sent, *self.unsent] if not call.begins]
        for call in calls:
            answer = call.answer
            if answer.ready:
                call.due = Answer(answer.streams, answer.steps, answer.asks, internal=True)
            else:
                answer.restart()
                call.due = answer
        self._sent.clear()
        self.unsent = collections.deque(calls)
        return calls

    def unanswered(self) -> list[KeptCall]:
        """Returns the calls that were sent and whose callers wait."""
        return [call for call in self._sent if not call.answer.ready]

    def fill(self, message: inference_service_pb2.Resumption) -> None:
        """Fills in the steps of the streams."""
        message.steps = self.clock
        if (self._steps != self.clock).any():
            tensors.encode_into(self._steps, message.stream_steps)

    def clear(self) -> None:
        """Drops everything, as the group has ended."""
        self._sent.clear()
        self.unsent.clear()
        self._spare.clear()
        self.size, self.state = 0, None
