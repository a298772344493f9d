"""What moves through the engine: a sequence under way, the chunks of frames it waits with, and what it gets back.

A live stream and a whole sequence are the same thing, a `Sequence`; the whole one's frames are just all there. Nothing
here knows torch or gRPC, or reads a clock.
"""

import collections
import enum
import itertools
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from seqloom_server.engine.core.slice_cost import SliceCost
from seqloom_server.engine.core.state_slots import Slot, SlotPool
from seqloom_server.errors import ServerError

Array = npt.NDArray[Any]
StateArrays = tuple[Array, ...]  # one [rows, N, width] per part of the model's state

OutputKind = Literal["logits", "probs", "log_probs", "labels", "hidden", "top_k"]


class Op(enum.StrEnum):
    """The classes of work, most urgent first."""

    STREAM = "stream"
    INFER = "infer"
    TRAIN = "train"


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """What a caller wants of each step; top_k is 0 but for "top_k"."""

    kind: OutputKind = "logits"
    top_k: int = 0


class Weights(Protocol):
    """One version of one model's weights as the scheduler sees it: an identity, state slots, and what a slice costs.

    max_cells: the most rows that a slice may have. whole_only: sequences run once all of their frames are there, and in
    one slice, as bidirectional layers need them.
    """

    model: str
    version: int
    slots: SlotPool
    cost: SliceCost
    max_cells: int
    whole_only: bool


@dataclass(slots=True)
class Chunk:
    """Frames that arrived together.

    rows: [k, D], k may be 0. silent: no frames were sent, so no output answers them (a bare reset or end).
    reset: the state is zeroed before them. last: the sequence ends after them. taken: rows already run.
    """

    rows: Array
    arrived: float
    reset: bool = False
    last: bool = False
    silent: bool = False
    taken: int = 0


@dataclass(slots=True)
class SliceResult:
    """What one slice gave one sequence.

    values and labels: rows of `steps` steps from `first_step` on, whichever the output kind has. answers: whether the
    caller is owed an output for it (also an empty one). snapshot, final_state: [rows, 1, width] per part, or None.
    """

    first_step: int
    steps: int
    values: Array | None
    labels: Array | None
    answers: bool
    snapshot: StateArrays | None = None
    final_state: StateArrays | None = None


class Sink(Protocol):
    """Where a sequence's pieces go; called on the event loop, in order. A sequence ends exactly once: by a piece
    with a final state or by fail(), or it was cancelled by its owner and hears nothing more."""

    def deliver(self, sequence: "Sequence", result: SliceResult) -> None: ...

    def fail(self, sequence: "Sequence", error: ServerError) -> None: ...


_ids = itertools.count()


@dataclass(slots=True, eq=False)
class Sequence:
    """A sequence under way: its weights, its waiting chunks, and where its state lies between slices."""

    op: Op
    weights: Weights
    output: OutputSpec
    sink: Sink
    initial_state: StateArrays | None = None
    deadline: float | None = None  # of a whole sequence, to its end; of a session, until something of it runs
    snapshot_interval: int = 0
    chunks: collections.deque[Chunk] = field(default_factory=collections.deque)
    waiting_steps: int = 0
    steps_done: int = 0
    slot: Slot | None = None
    started: bool = False
    in_flight: bool = False
    over: bool = False  # nothing more of it will run
    dropped: bool = False  # cancelled or failed: nothing more of it is delivered either
    last_active: float = 0.0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    last_slice: int = -1  # its number
    id: int = field(default_factory=_ids.__next__)

    @property
    def ready(self) -> bool:
        """Whether any of the chunks that wait could run now."""
        return bool(self.chunks) and (self.chunks[-1].last or not self.weights.whole_only)


@dataclass(slots=True, eq=False)
class Member:
    """One sequence's share of a slice: `steps` rows in `parts`, which follow one another.

    fresh: the state starts anew (from the initial state, or zeros) instead of from the slot. waited: seconds that its
    first chunk waited, or None where an earlier slice has told.
    """

    sequence: Sequence
    parts: list[Array]
    steps: int
    first_step: int
    waited: float | None
    fresh: bool
    initial_state: StateArrays | None
    answers: bool
    final: bool
    snapshot: bool


@dataclass(slots=True)
class Slice:
    """A bounded piece of device work: members that share one version of the weights. steps: the longest member's."""

    weights: Weights
    members: list[Member]
    steps: int
    cells: int  # the sum of the members' steps
    padded: int = 0  # what was computed beside them


def steps_of(members: list[Member]) -> npt.NDArray[np.int64]:
    """[N], the steps of each member."""
    return np.fromiter((member.steps for member in members), np.int64, len(members))
