"""What is due to the caller of one StreamInfer call, and how it is packed into messages.

Whatever is due when the transport is free travels in one message, so that messages grow fewer as load grows.
"""

import asyncio
import collections
from dataclasses import dataclass

from google.rpc import status_pb2
from seqloom.v1 import inference_service_pb2

from seqloom_server.engine.request import Array, StateArrays
from seqloom_server.rpc import convert
from seqloom_server.rpc.budget import ByteBudget

# Of outputs that were promised or computed: a caller that has not read so much is read from no longer.
_MAX_UNREAD_BYTES = 64 << 20


@dataclass(slots=True)
class Outgoing:
    """One entry that is due: arrays, not messages, so that a message is built once, in its place, when it is sent.

    steps: the session's steps up to the snapshot or the end. parts: of the state, by name. timing: queue and compute
    seconds. promised: bytes that were promised for it.
    """

    number: int
    opened: inference_service_pb2.SessionOpened | None = None
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
        arrays = (self.values, self.labels, *(self.snapshot or ()), *(self.final_state or ()))
        return sum(array.nbytes + 24 for array in arrays if array is not None) + (4096 if self.error else 64)

    def fill(self, entry: inference_service_pb2.SessionResponse) -> None:
        """Writes this into an empty entry of a message."""
        entry.session = self.number
        if self.opened is not None:
            entry.opened.CopyFrom(self.opened)
        if self.values is not None or self.labels is not None:
            entry.outputs.first_step = self.first_step
            convert.fill_outputs(entry.outputs.outputs, self.values, self.labels)
        if self.snapshot is not None:
            entry.snapshot.steps = self.steps
            convert.fill_state(entry.snapshot.state, self.parts, self.snapshot)
        if self.final_state is not None:
            entry.ended.steps = self.steps
            convert.fill_state(entry.ended.final_state, self.parts, self.final_state)
            entry.ended.timing.queue_seconds, entry.ended.timing.compute_seconds = self.timing
        if self.error is not None:
            entry.error.CopyFrom(self.error)


class Outbox:
    """Entries in the order in which they became due. `changed` is set whenever one is added.

    max_message_bytes: what a message takes, unless its one entry is larger. budget: what outputs are charged to.
    """

    def __init__(self, max_message_bytes: int, budget: ByteBudget) -> None:
        self.changed = asyncio.Event()
        self._max_message_bytes = max_message_bytes
        self._budget = budget
        self._entries: collections.deque[tuple[Outgoing, int]] = collections.deque()  # with their sizes
        self._bytes = 0
        self._promised = 0
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

    @property
    def full(self) -> bool:
        """Whether the caller has to read before it is read from."""
        return not self._room.is_set()

    async def has_room(self) -> None:
        """Returns when the caller has read enough of what was due to it."""
        await self._room.wait()

    def next_message(self) -> inference_service_pb2.StreamInferResponse:
        """Takes out as many entries as one message holds; there must be one."""
        message = inference_service_pb2.StreamInferResponse()
        room = self._max_message_bytes
        while self._entries and (not message.entries or self._entries[0][1] <= room):
            outgoing, size = self._entries.popleft()
            outgoing.fill(message.entries.add())
            room -= size
            self._bytes -= size
            self._budget.give(outgoing.promised)
        self._look()
        return message

    def clear(self) -> None:
        """Forgets what nobody will read."""
        self._budget.give(sum(outgoing.promised for outgoing, _ in self._entries))
        self._entries.clear()
        self._bytes = 0
        self._look()

    def _look(self) -> None:
        if self._bytes + self._promised > _MAX_UNREAD_BYTES:
            self._room.clear()
        else:
            self._room.set()
