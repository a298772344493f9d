"""Outputs, cut and merged as the server ran them, become one chunk for each that was sent.

Here it is also counted which steps the caller has received, which is what the window lets more be sent for, and what
each chunk costs until then.
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
class Due:
    """A chunk of `steps` whose outputs are not all there: `got` of them have come. since: when it was sent.

    early: what has come counts as received at once. For a chunk larger than the window, the rest of which could not be
    sent otherwise; and where the caller waits for everything. cost: what is to be given back for it.
    """

    steps: int
    early: bool
    since: float
    cost: int
    got: int = 0
    first_step: int = 0
    parts: list[tuple[Array | None, Array | None]] = field(default_factory=list)


class ChunkAssembly:
    """The chunks of one session that are due, in order. received: steps that count as received."""

    def __init__(self) -> None:
        self.received = 0
        self._due: collections.deque[Due] = collections.deque()
        self._ready: collections.deque[tuple[Chunk, int, int]] = collections.deque()  # steps to count as received; cost

    @property
    def ready(self) -> bool:
        """Whether a chunk is complete."""
        return bool(self._ready)

    @property
    def missing(self) -> int:
        """How many chunks are not complete."""
        return len(self._due)

    @property
    def missing_since(self) -> float | None:
        """When the first of those was sent, on time.monotonic's clock."""
        return self._due[0].since if self._due else None

    def expect(self, steps: int, *, early: bool, cost: int = 0) -> Due:
        """Says that the outputs of one more chunk will come."""
        due = Due(steps, early, time.monotonic(), cost)
        self._due.append(due)
        return due

    def shorten(self, due: Due, steps: int, cost: int) -> int:
        """Says that only so many steps of the chunk were sent after all; returns by how much it costs less now."""
        saved = max(0, due.cost - cost)
        due.cost -= saved
        due.steps = steps
        self._complete()
        return saved

    def take(self, message: inference_service_pb2.SessionOutputs) -> None:
        """Takes outputs of the next steps; none for a chunk of 0 steps."""
        outputs = message.outputs
        values = tensors.decode(outputs.values) if outputs.HasField("values") else None
        labels = tensors.decode(outputs.labels) if outputs.HasField("labels") else None
        rows = max(len(array) for array in (values, labels) if array is not None)
        at = 0
        while self._due:
            due = self._due[0]
            steps = min(rows - at, due.steps - due.got)
            if not due.parts:
                due.first_step = message.first_step + at
            whole = steps == rows  # as nearly always
            due.parts.append((values, labels) if whole else (_cut(values, at, steps), _cut(labels, at, steps)))
            due.got += steps
            at += steps
            if due.early:
                self.received += steps
            self._complete()
            if at == rows:
                break

    def receive(self) -> tuple[Chunk, int]:
        """Takes out the next chunk, which must be ready, and what it has cost."""
        chunk, unreceived, cost = self._ready.popleft()
        self.received += unreceived
        return chunk, cost

    def give_up(self) -> int:
        """Says that nothing more comes: drops what is there of chunks that are not complete; returns their cost."""
        given_up = 0
        for due in self._due:
            given_up += due.cost
            due.cost, due.parts = 0, []
        return given_up

    def disown(self) -> int:
        """Says that the chunks that are ready are the caller's own from now on; returns their cost."""
        disowned = sum(cost for _, _, cost in self._ready)
        self._ready = collections.deque((chunk, unreceived, 0) for chunk, unreceived, _ in self._ready)
        return disowned

    def _complete(self) -> None:
        """Moves the first chunk to the ready ones if all of it is there."""
        due = self._due[0] if self._due else None
        if due is not None and due.parts and due.got == due.steps:
            self._due.popleft()
            chunk = Chunk(due.first_step, arguments.joined_outputs(due.parts))
            self._ready.append((chunk, 0 if due.early else due.steps, due.cost))


def _cut(rows: Array | None, at: int, steps: int) -> Array | None:
    """Some of the rows that came together; a copy, which keeps no others in memory."""
    return None if rows is None else rows[at : at + steps].copy()
