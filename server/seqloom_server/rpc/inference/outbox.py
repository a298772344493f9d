"""What is due to the caller of one StreamInfer call, and how it is packed into messages.

Whatever is due when the transport is free travels in one message, so that messages grow fewer as load grows.
"""

import asyncio
import collections
from dataclasses import dataclass

from google.rpc import status_pb2
from seqloom import wire
from seqloom.v1 import inference_service_pb2

from seqloom_server.engine.core.sequence import Array, StateArrays
from seqloom_server.rpc.calls import converters
from seqloom_server.rpc.calls.byte_budget import ByteBudget

# Of outputs that were promised or computed: a caller that has not read so much is read from no longer.
_MAX_UNREAD_BYTES = 64 << 20
_LARGE_BYTES = 16 << 10  # of values; below, protobuf's copies cost less than more of Python

_ENTRIES = inference_service_pb2.StreamInferResponse.ENTRIES_FIELD_NUMBER
_OUTPUTS = inference_service_pb2.SessionResponse.OUTPUTS_FIELD_NUMBER
_OUTPUTS_OUTPUTS = inference_service_pb2.SessionOutputs.OUTPUTS_FIELD_NUMBER


@dataclass(slots=True)
class Outgoing:
    """One entry that is due: arrays, not messages, which are written when the message that takes them is.

    opened: the version of the weights and the window. steps: the session's steps up to the snapshot or the end. parts:
    of the state, by name. timing: queue and compute seconds. promised: bytes that were promised for it.
    """

    number: int
    opened: tuple[int, int] | None = None
    first_step: int = 0
    values: Array | None = None
    labels: Array | None = None
    steps: int = 0
    parts: tuple[str, ...] = ()
    snapshot: StateArrays | None = None
    final_state: StateArrays | None = None
    timing: tuple[float, float] = (0.0, 0.0)
    error: status_pb2.Status | None = None
    promised: int = 0

    @property
    def size(self) -> int:
        """About how many bytes the entry takes."""
        size = 64 if self.error is None else 4096
        if self.values is not None:
            size += self.values.nbytes + 24
        if self.labels is not None:
            size += self.labels.nbytes + 24
        for state in (self.snapshot, self.final_state):
            if state is not None:
                size += sum([part.nbytes + 24 for part in state])
        return size

    @property
    def large(self) -> bool:
        """Whether its values are better written straight into the message's bytes than through protobuf."""
        return self.values is not None and self.values.nbytes >= _LARGE_BYTES

    def buffers(self) -> wire.Buffers:
        """Returns this, which has values, as an entry of a StreamInferResponse; they are not copied yet."""
        first = inference_service_pb2.SessionOutputs(first_step=self.first_step).SerializeToString()
        outputs = [first, *converters.outputs_field(_OUTPUTS_OUTPUTS, self.values, self.labels)]
        self.values = self.labels = None
        entry = inference_service_pb2.SessionResponse()
        self.fill(entry)
        return wire.message(_ENTRIES, [entry.SerializeToString(), *wire.message(_OUTPUTS, outputs)])

    def fill(self, entry: inference_service_pb2.SessionResponse) -> None:
        """Writes this into an empty entry of a message."""
        entry.session = self.number
        if self.opened is not None:
            entry.opened.weights_version, entry.opened.window_steps = self.opened
        if self.values is not None or self.labels is not None:
            entry.outputs.first_step = self.first_step
            converters.fill_outputs(entry.outputs.outputs, self.values, self.labels)
        if self.snapshot is not None:
            entry.snapshot.steps = self.steps
            converters.fill_state(entry.snapshot.state, self.parts, self.snapshot)
        if self.final_state is not None:
            entry.ended.steps = self.steps
            converters.fill_state(entry.ended.final_state, self.parts, self.final_state)
            entry.ended.timing.queue_seconds, entry.ended.timing.compute_seconds = self.timing
        if self.error is not None:
            entry.error.CopyFrom(self.error)


class Outbox:
    """Entries in the order in which they became due. `changed` is set whenever one is added.

    max_message_bytes: what a message takes, unless its one entry is larger. budget: what outputs are charged to. full:
    whether the caller has to read before it is read from.
    """

    def __init__(self, max_message_bytes: int, budget: ByteBudget) -> None:
        self.changed = asyncio.Event()
        self._max_message_bytes = max_message_bytes
        self._budget = budget
        self._entries: collections.deque[tuple[Outgoing, int]] = collections.deque()  # with their sizes
        self._bytes = 0
        self._promised = 0
        self.full = False
        self._room = asyncio.Event()
        self._room.set()

    def __len__(self) -> int:
        return len(self._entries)

    def promise(self, size: int) -> None:
        """Says that outputs of so many bytes will come. Raises ServerError OVERLOADED, and then promises nothing."""
        self._budget.take(size)
        self._promised += size
        self._look()

    def withdraw(self, size: int) -> None:
        """Says that they will not come after all."""
        self._budget.give(size)
        self._promised -= size
        self._look()

    def put(self, outgoing: Outgoing) -> None:
        """Adds an entry, with which what was promised of it is there."""
        size = outgoing.size
        self._entries.append((outgoing, size))
        self._bytes += size
        self._promised -= outgoing.promised
        self._look()
        self.changed.set()

    async def has_room(self) -> None:
        """Returns when the caller has read enough of what was due to it."""
        await self._room.wait()

    def next_message(self) -> bytes:
        """Takes out as many entries as one message holds, there must be one; returns a StreamInferResponse's bytes."""
        parts: wire.Buffers = []
        message = inference_service_pb2.StreamInferResponse()
        room = self._max_message_bytes
        while self._entries and (room == self._max_message_bytes or self._entries[0][1] <= room):
            outgoing, size = self._entries.popleft()
            if outgoing.large:
                parts += [message.SerializeToString(), *outgoing.buffers()]
                message.Clear()
            else:
                outgoing.fill(message.entries.add())
            room -= size
            self._bytes -= size
            self._budget.give(outgoing.promised)
        self._look()
        return wire.joined([*parts, message.SerializeToString()])

    def clear(self) -> None:
        """Forgets what nobody will read."""
        self._budget.give(sum(outgoing.promised for outgoing, _ in self._entries))
        self._entries.clear()
        self._bytes = 0
        self._look()

    def _look(self) -> None:
        full = self._bytes + self._promised > _MAX_UNREAD_BYTES
        if full != self.full:
            self.full = full
            if full:
                self._room.clear()
            else:
                self._room.set()
