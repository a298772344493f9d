"""One call of a stream group as it is sent: the entries that it takes, encoded when they are written."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from seqloom import tensors, wire
from seqloom._config import MESSAGE_BYTES
from seqloom._streaming.outgoing_entry import SendingSession
from seqloom.tensors import Array
from seqloom.v1 import inference_service_pb2, tensor_pb2

_GROUPS = inference_service_pb2.StreamInferRequest.GROUPS_FIELD_NUMBER
_FRAMES = inference_service_pb2.GroupRequest.FRAMES_FIELD_NUMBER


class SendingGroup(SendingSession, Protocol):
    """The group that an entry belongs to. failures: those of its calls that it has seen so far."""

    failures: int


@dataclass(slots=True)
class GroupEntry:
    """One entry of a group. message: all of it but its number, its frames, and what is known when it is written.

    frames: a block [w, k, D]. deadline, held_bytes: as of OutgoingEntry.
    """

    session: SendingGroup
    message: inference_service_pb2.GroupRequest
    frames: Array | None = None
    held_bytes: int = 0
    deadline: float = math.inf
    number: int = field(init=False)

    def __post_init__(self) -> None:
        self.number = self.session.number

    @property
    def cancel(self) -> bool:
        """Whether it drops the group."""
        return self.message.cancel

    @property
    def opens(self) -> bool:
        """Whether it opens the group."""
        return self.message.HasField("open")

    @property
    def size(self) -> int:
        """The approximate size of the entry, in bytes."""
        return 64 + self.message.ByteSize() + (0 if self.frames is None else self.frames.nbytes)

    @property
    def is_dead(self) -> bool:
        session = self.session
        return (session.failure is not None or session.number != self.number) and not self.cancel

    def release_budget(self) -> None:
        if self.held_bytes:
            self.session.release_budget(self.held_bytes)

    def buffers(self, now: float) -> wire.Buffers:
        message = self.message
        message.group, message.acknowledged_steps = self.number, self.session.acknowledged
        head = message.SerializeToString()
        frames, self.frames = self.frames, None
        return wire.message(_GROUPS, [head] if frames is None else wire.tensor(_FRAMES, frames, head))

    def keep(self) -> None:
        """Copies the frames, if they are not written yet: the caller may change them from now on."""
        if self.frames is not None:
            self.frames = self.frames.copy()


def stream_set(streams: Array | None) -> inference_service_pb2.StreamSet:
    """Returns the message of streams, int32 [w], None for all."""
    if streams is None:
        return inference_service_pb2.StreamSet(all=True)
    return inference_service_pb2.StreamSet(streams=tensors.encode(streams))


def entries(
    group: SendingGroup, message: inference_service_pb2.GroupRequest, frames: Array | None
) -> Iterator[GroupEntry]:
    """Yields the entries of a call: one, or one for each block of its frames, if these do not fit a message.

    message: the call, but for its frames, [w, k, D]. Each entry holds the bytes of its frames of the budget.
    """
    if frames is None or frames.nbytes <= MESSAGE_BYTES:
        yield GroupEntry(group, message, frames, 0 if frames is None else frames.nbytes)
        return
    width, steps = frames.shape[:2]
    row = frames.shape[2] * frames.itemsize
    deep = max(1, MESSAGE_BYTES // (width * row))  # by steps first
    across = width if deep > 1 else max(1, MESSAGE_BYTES // row)
    for step in range(0, steps, deep):
        for stream in range(0, width, across):
            block = np.ascontiguousarray(frames[stream : stream + across, step : step + deep])
            last = step + deep >= steps and stream + across >= width
            part = inference_service_pb2.GroupRequest(failures=message.failures) if step or stream else message
            part.more = not last
            part.place.stream, part.place.step, part.place.streams, part.place.steps = stream, step, width, steps
            yield GroupEntry(group, part, block, block.nbytes)


def state_blocks(parts: dict[str, Array], streams: Array | None) -> Iterator[tuple[Array | None, tensor_pb2.State]]:
    """Yields states, [rows, w, width] per part, in blocks of streams that fit a message: their numbers, the states."""
    first = next(iter(parts.values()))
    width = first.shape[1]
    across = max(1, MESSAGE_BYTES // max(1, sum(part.nbytes for part in parts.values()) // width))
    for begin in range(0, width, across):
        block = slice(begin, begin + across)
        state = tensor_pb2.State(**{name: tensors.encode(part[:, block]) for name, part in parts.items()})
        where = np.arange(width, dtype=np.int32) if streams is None else streams
        yield (streams if across >= width else where[block]), state
