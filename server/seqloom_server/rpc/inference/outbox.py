"""The queue of outgoing entries of one StreamInfer call, and how they are packed into messages.

All entries that are queued when the transport is free are sent in one message, so messages get fewer as load grows.
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

# of outputs, promised or computed, beyond which no more requests are read from the caller
_MAX_UNREAD_BYTES = 64 << 20
_LARGE_BYTES = 16 << 10  # of values; below it protobuf's copies are cheaper than more Python

_ENTRIES = inference_service_pb2.StreamInferResponse.ENTRIES_FIELD_NUMBER
_OUTPUTS = inference_service_pb2.SessionResponse.OUTPUTS_FIELD_NUMBER
_OUTPUTS_OUTPUTS = inference_service_pb2.SessionOutputs.OUTPUTS_FIELD_NUMBER


@dataclass(slots=True)
class Outgoing:
    """One outgoing entry; its arrays are encoded when the message that carries it is.

    opened: (weights version, window). steps: the session's steps up to the snapshot or the end. parts: names of the
    state's parts. timing: (queue seconds, compute seconds). promised: bytes charged for its outputs. live: whether
    the session is.
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
    live: bool = True

    @property
    def size(self) -> int:
        """The approximate bytes of the entry."""
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
        """Whether it is faster to write its values into the message's bytes without protobuf."""
        return self.values is not None and self.values.nbytes >= _LARGE_BYTES

    def buffers(self) -> wire.Buffers:
        """Returns an entry with values as a field of a StreamInferResponse, without copying the values."""
        first = inference_service_pb2.SessionOutputs(first_step=self.first_step).SerializeToString()
        outputs = [first, *converters.outputs_field(_OUTPUTS_OUTPUTS, self.values, self.labels)]
        self.values = self.labels = None
        entry = inference_service_pb2.SessionResponse()
        self.fill(entry)
        return wire.message(_ENTRIES, [entry.SerializeToString(), *wire.message(_OUTPUTS, outputs)])

    def fill(self, entry: inference_service_pb2.SessionResponse) -> None:
        """Fills an empty entry of a message."""
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
    """A queue of outgoing entries. `changed` is set whenever one is added.

    max_message_bytes: of a message, unless a single entry is larger. budget: charged for outputs, as the caller's.
    full: whether the call's unread outputs, and those to come of live sessions, have reached their limit. Those to come
    of whole sequences are only charged: what is read late could not be refused at once.
    """

    def __init__(self, max_message_bytes: int, budget: ByteBudget, caller: str) -> None:
        self.changed = asyncio.Event()
        self._max_message_bytes = max_message_bytes
        self._budget = budget
        self._caller = caller
        self._entries: collections.deque[tuple[Outgoing, int]] = collections.deque()  # with their sizes
        self._bytes = 0
        self._promised = 0
        self.full = False
        self._room = asyncio.Event()
        self._room.set()

    def __len__(self) -> int:
        return len(self._entries)

    def promise(self, size: int, *, live: bool) -> None:
        """Charges `size` bytes for outputs to come. Raises ServerError OVERLOADED, and then charges nothing."""
        self._budget.take(size, self._caller)
        if live:
            self._promised += size
            self._update_full()

    def withdraw(self, size: int, *, live: bool) -> None:
        """Returns `size` charged bytes of outputs that will not come."""
        self._budget.give(size, self._caller)
        if live:
            self._promised -= size
            self._update_full()

    def put(self, outgoing: Outgoing) -> None:
        """Adds an entry, whose outputs have been promised."""
        size = outgoing.size
        self._entries.append((outgoing, size))
        self._bytes += size
        if outgoing.live:
            self._promised -= outgoing.promised
        self._update_full()
        self.changed.set()

    async def has_room(self) -> None:
        """Waits until the caller has read enough outputs."""
        await self._room.wait()

    def next_message(self) -> bytes:
        """Removes as many entries as fit one message, at least one; returns the bytes of a StreamInferResponse."""
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
            self._budget.give(outgoing.promised, self._caller)
        self._update_full()
        return wire.joined([*parts, message.SerializeToString()])

    def clear(self) -> None:
        """Drops all entries."""
        self._budget.give(sum(outgoing.promised for outgoing, _ in self._entries), self._caller)
        self._entries.clear()
        self._bytes = 0
        self._update_full()

    def _update_full(self) -> None:
        full = self._bytes + self._promised > _MAX_UNREAD_BYTES
        if full != self.full:
            self.full = full
            if full:
                self._room.clear()
            else:
                self._room.set()
