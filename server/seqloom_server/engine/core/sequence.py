"""The engine's data classes: sequences, their queued chunks of frames, slices, and the results of slices.

A live stream and a whole sequence are both a `Sequence`; the frames of a whole one are queued at once, or as fast as
the connection takes them. A group of streams is one, too: each of its steps has a row for each stream that runs.
Nothing here knows torch or gRPC, or reads a clock.
"""

import collections
import enum
import itertools
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from seqloom_server.engine.core.slice_cost import SliceCost
from seqloom_server.engine.core.state_slots import Slot, SlotBlock, SlotPool
from seqloom_server.engine.core.stream_group import Beginnings, GroupWork, Index, StreamGroup
from seqloom_server.errors import ServerError
from seqloom_server.nn.spec import OutputKind

Array = npt.NDArray[Any]
StateArrays = tuple[Array, ...]  # one [rows, N, width] per part of the model's state


Lane = tuple[str, bool]  # a caller, and whether its long whole sequences: those take turns with its other work


class Op(enum.StrEnum):
    """The classes of work, most urgent first."""

    STREAM = "stream"
    INFER = "infer"
    TRAIN = "train"


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """The output that a caller wants of each step; top_k is 0 except for "top_k"."""

    kind: OutputKind = "logits"
    top_k: int = 0


class Weights(Protocol):
    """One version of one model's weights as the scheduler sees it: an identity, state slots, and a cost model.

    max_cells: the most rows of a slice. whole_only: each sequence runs in one slice, once all of its frames have
    arrived, as bidirectional layers need.
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

    rows: [k, D], of a group [k, w, D]; k may be 0. arrived: by time.monotonic(). silent: a reset or end without frames,
    which gets no output. reset: zero the state before them. last: end the sequence after them. taken: steps that are
    already in a slice. asks: the state after it is wanted, of a stream that is no group. work: what it does with the
    streams of a group, None where there is none.
    """

    rows: Array
    arrived: float
    reset: bool = False
    last: bool = False
    silent: bool = False
    asks: bool = False
    taken: int = 0
    work: GroupWork | None = None

    @property
    def cells(self) -> int:
        """The rows of all its steps."""
        rows = self.rows
        return len(rows) if rows.ndim == 2 else rows.shape[0] * rows.shape[1]

    @property
    def waiting_bytes(self) -> int:
        """The bytes that it holds while it waits: frames that are not in a slice, and what changes states."""
        rows = self.rows[self.taken :].nbytes if self.taken else self.rows.nbytes
        return rows if self.work is None or self.taken else rows + self.work.change_bytes

    @property
    def width(self) -> int:
        """The rows of one step."""
        return 1 if self.work is None else self.rows.shape[1]


@dataclass(slots=True)
class SliceResult:
    """The result of one slice for one sequence.

    values, labels: rows of `steps` steps from `first_step` on, None if the output kind has none; of a group the steps
    of one stream after those of another. answers: whether to send an output, even an empty one. snapshot, final_state,
    states: [rows, w, width] per part, or None; w is 1 but for a group. states: those that were asked for. streams: that
    ran, of a group perhaps fewer than its call has.
    """

    first_step: int
    steps: int
    values: Array | None
    labels: Array | None
    answers: bool
    snapshot: StateArrays | None = None
    final_state: StateArrays | None = None
    states: StateArrays | None = None
    streams: int = 1


class Sink(Protocol):
    """Receives a sequence's results, in order, on the event loop. A sequence ends exactly once: by a result with a
    final state, by fail(), or, if it was cancelled, without a further call."""

    def deliver(self, sequence: "Sequence", result: SliceResult) -> None: ...

    def fail(self, sequence: "Sequence", error: ServerError) -> None: ...


_ids = itertools.count()


@dataclass(slots=True, eq=False)
class Sequence:
    """An open sequence: its weights, its queued chunks, and the slot of its state between slices.

    waiting_steps, steps_done: of all its streams together, where it is a group.
    """

    op: Op
    weights: Weights
    output: OutputSpec
    sink: Sink
    initial_state: StateArrays | None = None  # of a group, it is in `group`
    group: StreamGroup | None = None
    deadline: float | None = None  # by time.monotonic(): for a whole sequence's end, or a session's first slice
    caller: str = ""  # whom it is counted for: callers take turns
    # steps a second, of each stream, of a live session that is promised its delay; 0 for one that takes what is left
    rate: float = 0.0
    total_steps: int = 0  # of a whole sequence, where its caller has said so
    resumed: bool = False  # a live session that was lost, with its connection or with another server
    snapshot_interval: int = 0
    chunks: collections.deque[Chunk] = field(default_factory=collections.deque)
    waiting_steps: int = 0
    steps_done: int = 0
    slot: Slot | SlotBlock | None = None
    started: bool = False
    in_flight: bool = False
    over: bool = False  # nothing more of it will run
    dropped: bool = False  # cancelled or failed: nothing more of it is delivered either
    last_active: float = 0.0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    last_slice: int = -1  # number of the slice that it was last in
    # the scheduler's: lane of its caller, place in it while queued; the steps that wait, and the seconds of device time
    # that these, or those announced, are expected to take
    lane: Lane | None = None
    place: tuple[bool, float, int] | None = None
    expected_steps: int = 0
    expected_seconds: float = 0.0
    reserved_seconds: float = 0.0
    paid_until: float = 0.0  # when a session that keeps its rate would have sent what has run
    on_rate: bool = False  # whether what waits, or was taken last, is within the rate
    admitted: float | None = None  # when it was admitted by prediction, by time.monotonic()
    predicted: float = 0.0  # seconds from then to its end
    id: int = field(default_factory=_ids.__next__)

    @property
    def width(self) -> int:
        """The number of its streams: 1 unless it is a group."""
        return 1 if self.group is None else self.group.count

    @property
    def ready(self) -> bool:
        """Whether a queued chunk could run now."""
        return bool(self.chunks) and (self.chunks[-1].last or not self.weights.whole_only)


@dataclass(slots=True, eq=False)
class Member:
    """One sequence's part of a slice: `steps` steps of `width` rows, split over the arrays `parts`.

    fresh: the state begins with the initial state, or zeros, instead of the slot's. waited: seconds that its first
    chunk was queued, None if part of that chunk was in an earlier slice. expected: seconds of device time in a full
    batch, of a whole sequence. streams: of a group, int64 [width], None for all; beginnings: those of its states that
    are not in their slots; change_bytes: of what has replaced states. asks: whether its states are wanted.
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
    expected: float = 0.0
    width: int = 1
    streams: Index | None = None
    beginnings: Beginnings | None = None
    change_bytes: int = 0
    asks: bool = False

    @property
    def cells(self) -> int:
        """Its rows."""
        return self.steps * self.width


@dataclass(slots=True)
class Slice:
    """A bounded piece of device work: members that share one version of the weights.

    steps: the longest member's. crowded: whether whole sequences were left waiting when it was formed. written: whether
    states of it have been written, so that it cannot be run again.
    """

    weights: Weights
    members: list[Member]
    steps: int
    cells: int  # the sum of the members' rows
    padded: int = 0  # steps of padding that were computed in addition
    crowded: bool = False
    written: bool = False

    @classmethod
    def of(cls, weights: Weights, members: list[Member]) -> "Slice":
        """Returns a slice of these members."""
        return cls(weights, members, max(member.steps for member in members), sum(member.cells for member in members))


def steps_of(members: list[Member]) -> npt.NDArray[np.int64]:
    """Returns [N], the steps of each member."""
    return np.fromiter((member.steps for member in members), np.int64, len(members))


def widths_of(members: list[Member]) -> npt.NDArray[np.int64]:
    """Returns [N], the rows of each member at each of its steps."""
    return np.fromiter((member.width for member in members), np.int64, len(members))
