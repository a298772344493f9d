"""Assembles the outputs that a server sends into one chunk for each chunk of frames that was sent.

The server may split and merge outputs. This also counts the steps that the caller has received, as the window limits
the steps that are sent and not received, and what each chunk costs of the stream budget until then.
"""

import collections
import time
from dataclasses import dataclass, field

from seqloom import tensors
from seqloom._messages import arguments
from seqloom.tensors import Array
from seqloom.types import Chunk
from seqloom.v1 import inference_service_pb2


@dataclass(slots=True)
class PendingChunk:
    """A chunk of `steps` of which only the outputs of `steps_received` have arrived. since: when it was sent.

    received_on_arrival: outputs count as received when they arrive, not when the caller takes them: for a chunk larger
    than the window, whose rest could not be sent otherwise, and if the caller waits for the whole sequence. cost: bytes
    that it holds of the stream budget.
    """

    steps: int
    received_on_arrival: bool
    since: float
    cost: int
    steps_received: int = 0
    first_step: int = 0
    parts: list[tuple[Array | None, Array | None]] = field(default_factory=list)


class ChunkAssembly:
    """The chunks of one session with pending or ready outputs, in order. received: steps that count as received.

    expected, completed: how many chunks were sent so far, and whose outputs have all come. seen: steps whose outputs
    have come on the present call, counted from the session's first.
    """

    def __init__(self) -> None:
        self.received = 0
        self.seen = 0
        self.expected = self.completed = 0
        self._arrived = 0  # steps
        self._pending: collections.deque[PendingChunk] = collections.deque()
        # each with its steps to count as received, and its cost
        self._ready: collections.deque[tuple[Chunk, int, int]] = collections.deque()

    @property
    def ready(self) -> bool:
        """Whether a chunk is complete and can be received."""
        return bool(self._ready)

    @property
    def missing(self) -> int:
        """The number of chunks that are not complete."""
        return len(self._pending)

    @property
    def missing_since(self) -> float | None:
        """When the first incomplete chunk was sent, on time.monotonic's clock; None if there is none."""
        return self._pending[0].since if self._pending else None

    def expect(self, steps: int, *, received_on_arrival: bool, cost: int = 0) -> PendingChunk:
        """Adds a chunk that was sent, whose outputs will arrive."""
        pending = PendingChunk(steps, received_on_arrival, time.monotonic(), cost)
        self._pending.append(pending)
        self.expected += 1
        return pending

    def shorten(self, pending: PendingChunk, steps: int, cost: int) -> int:
        """Reduces a chunk to the steps of it that were sent; returns how many bytes it costs less."""
        saved = max(0, pending.cost - cost)
        pending.cost -= saved
        pending.steps = steps
        self._complete()
        return saved

    def take(self, message: inference_service_pb2.SessionOutputs) -> None:
        """Adds the outputs of the next steps; a chunk of 0 steps has outputs of 0 rows."""
        outputs = message.outputs
        values = tensors.decode(outputs.values) if outputs.HasField("values") else None
        labels = tensors.decode(outputs.labels) if outputs.HasField("labels") else None
        rows = max(len(array) for array in (values, labels) if array is not None)
        self.seen, repeated = self.seen + rows, 0
        if rows and self.seen - rows < self._arrived:  # outputs that had come on a call before
            repeated = min(rows, self._arrived - self.seen + rows)
            if repeated == rows:
                return
            values, labels = _cut(values, repeated, rows), _cut(labels, repeated, rows)
            rows -= repeated
        at = 0
        while self._pending:
            pending = self._pending[0]
            steps = min(rows - at, pending.steps - pending.steps_received)
            if not pending.parts:
                pending.first_step = message.first_step + repeated + at
            whole = steps == rows  # the usual case
            pending.parts.append((values, labels) if whole else (_cut(values, at, steps), _cut(labels, at, steps)))
            pending.steps_received += steps
            self._arrived += steps
            at += steps
            if pending.received_on_arrival:
                self.received += steps
            self._complete()
            if at == rows:
                break

    def receive(self) -> tuple[Chunk, int]:
        """Removes the next ready chunk; returns it and its cost."""
        chunk, unreceived, cost = self._ready.popleft()
        self.received += unreceived
        return chunk, cost

    def drop_pending(self) -> int:
        """Drops the outputs of incomplete chunks, as no more will arrive; returns the cost of these chunks."""
        dropped = 0
        for pending in self._pending:
            dropped += pending.cost
            pending.cost, pending.parts = 0, []
        return dropped

    def release_ready(self) -> int:
        """Stops counting the ready chunks against the budget; returns their cost. They can still be received."""
        released = sum(cost for _, _, cost in self._ready)
        self._ready = collections.deque((chunk, unreceived, 0) for chunk, unreceived, _ in self._ready)
        return released

    def _complete(self) -> None:
        """Moves the first pending chunk to the ready chunks if it is complete."""
        pending = self._pending[0] if self._pending else None
        if pending is not None and pending.parts and pending.steps_received == pending.steps:
            self._pending.popleft()
            self.completed += 1
            chunk = Chunk(pending.first_step, arguments.joined_outputs(pending.parts))
            self._ready.append((chunk, 0 if pending.received_on_arrival else pending.steps, pending.cost))


def _cut(rows: Array | None, at: int, steps: int) -> Array | None:
    """Returns a copy of some rows, which does not keep the other rows in memory."""
    return None if rows is None else rows[at : at + steps].copy()
