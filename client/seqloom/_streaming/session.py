"""What the client keeps of one session: its window, its pending outputs, its final state or failure.

Everything here runs on one event loop.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from seqloom._messages import arguments
from seqloom._streaming.chunk_assembly import ChunkAssembly
from seqloom._streaming.deadline_timer import Deadline, DeadlineTimer, Waiter
from seqloom._streaming.outgoing_entry import Entry, OutgoingEntry
from seqloom.errors import SeqloomError, from_status, with_argument_names
from seqloom.tensors import Array
from seqloom.types import Chunk, Snapshot, State, Timing
from seqloom.v1 import inference_service_pb2

INITIAL_WINDOW = 64  # steps that every server accepts before it has sent its window
ENTRY_BYTES = 256 << 10  # of frames in one entry, so that the sessions of a call take turns


class EntryQueue(Protocol):
    """Sends the entries of sessions. timer: holds the deadlines of all waits for these sessions."""

    timer: DeadlineTimer

    def put(self, entry: Entry) -> None: ...

    def leave(self) -> None:
        """Lets no more sessions be opened here: the server is going away."""


class CallSession(ABC):
    """One session or group of a shared call. If it fails, every wait for it and every later call raise its failure.

    opened: whether the entry that opens it was written. weights_version: 0 until the server has opened it.
    """

    def __init__(self, queue: EntryQueue, number: int, window: int) -> None:
        self.number = number
        self.window = window
        self.weights_version = 0
        self.timing: Timing | None = None
        self.final_state: State | None = None
        self.failure: SeqloomError | None = None
        self.opened = False
        self.ending = False
        self._queue = queue
        self._waiting: set[Waiter] = set()

    @property
    def ended(self) -> bool:
        """Whether it has ended: all outputs have arrived, or it has failed."""
        return self.final_state is not None or self.failure is not None

    def fail(self, error: SeqloomError) -> None:
        """Ends it with an error, unless it has ended."""
        if not self.ended:
            self.failure = error
            self._drop_pending()
        self.notify()

    def move_to(self, queue: EntryQueue, number: int) -> None:
        """Goes on on another call, under another number."""
        self._queue, self.number, self.opened = queue, number, False

    @property
    def waits_until(self) -> float:
        """The latest deadline of the waits for it that have one; else -inf."""
        deadlines = (waiter.deadline for waiter in self._waiting)
        return max((each for each in deadlines if each < math.inf), default=-math.inf)

    @abstractmethod
    def cancel(self, error: SeqloomError) -> None:
        """Cancels it, unless it has ended. What is ready can still be received."""

    def closed(self) -> None:  # noqa: B027 - only what can be resumed keeps anything
        """Is called once it has ended, and has left its call."""

    def release_budget(self, size: int) -> None:  # noqa: B027 - only live streams and groups take any
        """Returns bytes to the stream budget that were taken for an entry."""

    async def wait(self, condition: Callable[[], bool], deadline: Deadline) -> None:
        """Waits until a condition is true. Raises the session's failure, and TimeoutError at the deadline."""
        while not condition():
            if self.failure is not None:
                raise self.failure
            waiter = Waiter(condition, deadline)
            self._waiting.add(waiter)
            self._queue.timer.watch(waiter)
            try:
                await waiter.woken
            except TimeoutError:
                if self.failure is not None:
                    raise self.failure from None
                if not condition():
                    raise
            finally:
                self._waiting.discard(waiter)
                self._queue.timer.forget(waiter)

    def notify(self) -> None:
        """Wakes the waits whose condition is true, or all of them if the session has failed."""
        for waiter in self._waiting:
            if self.failure is not None or waiter.condition():
                waiter.wake()

    @abstractmethod
    def _drop_pending(self) -> None:
        """Drops the outputs of what is incomplete, as no more will arrive."""


class Session(CallSession):
    """One session of a shared call, live or whole.

    frames_name: the caller's name of the frames, for error messages.
    """

    def __init__(self, queue: EntryQueue, number: int, window: int, frames_name: str) -> None:
        super().__init__(queue, number, window)
        self.sent = 0
        self.snapshot: Snapshot | None = None
        self._frames_name = frames_name
        self._chunks = ChunkAssembly()

    @property
    def received(self) -> int:
        """Steps whose outputs the caller has received."""
        return self._chunks.received

    @property
    def acknowledged(self) -> int:
        """The same, as the server is told."""
        return self._chunks.received

    @property
    def ready(self) -> bool:
        """Whether a chunk can be received."""
        return self._chunks.ready

    @property
    def has_pending(self) -> bool:
        """Whether outputs have not arrived yet, or have not been received."""
        return self._chunks.ready or self._chunks.missing > 0

    @property
    def pending_since(self) -> float | None:
        """When the first incomplete chunk was sent, on time.monotonic's clock; None if there is none."""
        return self._chunks.missing_since

    @property
    def exhausted(self) -> bool:
        """Whether the session has ended without an error and all outputs were received."""
        return self.final_state is not None and not self.has_pending

    @property
    def room(self) -> int:
        """The steps that the window has room for."""
        return self.window - (self.sent - self.received)

    def receive(self) -> Chunk:
        """Returns the outputs of the next chunk, which must be ready."""
        return self._chunks.receive()[0]

    def cancel(self, error: SeqloomError) -> None:
        """Cancels the session, unless it has ended. Chunks that are ready can still be received."""
        if not self.ended:
            self._queue.put(OutgoingEntry(self, cancel=True))
            self.fail(error)

    def take(self, entry: inference_service_pb2.SessionResponse) -> None:
        """Handles a response of the server for this session."""
        if entry.HasField("error"):
            self.fail(with_argument_names(from_status(entry.error), self._frames_name))
            return
        if entry.HasField("opened"):
            self._take_opened(entry.opened)
        if entry.HasField("outputs"):
            self._chunks.take(entry.outputs)
        if entry.HasField("snapshot"):
            self._take_snapshot(entry)
        if entry.HasField("ended"):
            timing = entry.ended.timing
            self.timing = Timing(timing.queue_seconds, timing.compute_seconds)
            self.final_state = arguments.state_of(entry.ended.final_state)
        self.notify()

    def _take_opened(self, opened: inference_service_pb2.SessionOpened) -> None:
        self.weights_version, self.window = opened.weights_version, opened.window_steps

    def _take_snapshot(self, entry: inference_service_pb2.SessionResponse) -> None:
        self.snapshot = Snapshot(entry.snapshot.steps, arguments.state_of(entry.snapshot.state))

    def _drop_pending(self) -> None:
        self._chunks.drop_pending()


def rows_per_entry(frames: Array) -> int:
    """Returns how many rows of these frames fit into one entry."""
    return max(1, ENTRY_BYTES // int(frames.shape[1] * frames.itemsize))
