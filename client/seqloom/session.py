"""One session of the shared call as the caller's side keeps it: its window, the chunks that are due, and how it ended.

Everything here runs on one event loop. Outputs come cut as the server ran them; here they become one chunk for each
that was sent.
"""

import asyncio
import collections
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from seqloom import convert, tensors
from seqloom.errors import DeadlineExceeded, InvalidArgument, SeqloomError, from_status, in_callers_words
from seqloom.types import Array, Chunk, Snapshot, State, Timing
from seqloom.v1 import inference_service_pb2

INITIAL_WINDOW = 64  # steps that every server takes before it has told its window
_ENTRY_BYTES = 256 << 10  # of frames in one entry, so that sessions of one call take turns


@dataclass(slots=True)
class Outgoing:
    """One entry that waits to be sent: arrays, not messages, so that a message is built once, in its place."""

    session: "Session"
    open: inference_service_pb2.OpenSession | None = None
    reset: bool = False
    frames: Array | None = None
    end: bool = False
    cancel: bool = False

    @property
    def size(self) -> int:
        """About how many bytes the entry takes."""
        opening = 0 if self.open is None else self.open.ByteSize()
        return 64 + opening + (0 if self.frames is None else self.frames.nbytes)

    def fill(self, entry: inference_service_pb2.SessionRequest) -> None:
        """Writes this into an empty entry of a message."""
        entry.session = self.session.number
        if self.open is not None:
            entry.open.CopyFrom(self.open)
        if self.frames is not None:
            tensors.encode_into(self.frames, entry.frames)
            entry.acknowledged_steps = self.session.consumed
        entry.reset, entry.end, entry.cancel = self.reset, self.end, self.cancel


class Wire(Protocol):
    """Where a session's entries go."""

    def put(self, entry: Outgoing) -> None: ...


@dataclass(slots=True)
class _Due:
    """A chunk that was sent and whose outputs are not all there: `steps` of it were sent, `got` have come."""

    steps: int
    complete: bool
    got: int = 0
    consumed: int = 0
    first_step: int = 0
    parts: list[tuple[Array | None, Array | None]] = field(default_factory=list)


class Session:
    """An open session. Its failure, if it has one, is raised by whatever waits for it, and by everything later.

    greedy: outputs count as consumed when they arrive, as for a whole sequence whose caller waits for all of them.
    frames_name: what the caller calls the frames.
    """

    def __init__(self, wire: Wire, number: int, window: int, *, greedy: bool = False, frames_name: str = "frames"):
        self.number = number
        self.window = window
        self.sent = 0
        self.consumed = 0
        self.weights_version = 0
        self.snapshot: Snapshot | None = None
        self.final_state: State | None = None
        self.timing: Timing | None = None
        self.failure: SeqloomError | None = None
        self.ending = False
        self._wire = wire
        self._greedy = greedy
        self._frames_name = frames_name
        self._reset = False
        self._due: collections.deque[_Due] = collections.deque()
        self._ready: collections.deque[tuple[Chunk, int]] = collections.deque()  # with the steps not yet consumed
        self._waiting: list[asyncio.Future[None]] = []
        self._sending = asyncio.Lock()

    @property
    def ready(self) -> bool:
        """Whether a chunk can be received."""
        return bool(self._ready)

    @property
    def due(self) -> bool:
        """Whether outputs are still to come, or to be received."""
        return bool(self._due or self._ready)

    @property
    def exhausted(self) -> bool:
        """Whether it has ended well and everything was received."""
        return self.final_state is not None and not self.due

    @property
    def ended(self) -> bool:
        """Whether nothing more comes: everything is there, or the session has failed."""
        return self.final_state is not None or self.failure is not None

    def open(self, message: inference_service_pb2.OpenSession, frames: Array | None = None) -> None:
        """Opens the session; with `frames`, a whole sequence of which as much goes along as the window takes."""
        if frames is None:
            self._wire.put(Outgoing(self, open=message))
            return
        self._due.append(_Due(len(frames), complete=True))
        part = frames[: min(self.window, _rows(frames))]
        self.sent = len(part)
        self.ending = len(part) == len(frames)
        message.whole_sequence = not self.ending
        self._wire.put(Outgoing(self, open=message, frames=part, end=self.ending))

    async def feed_rest(self, frames: Array) -> None:
        """Sends what open() left of a whole sequence, and its end."""
        while self.sent < len(frames):
            await self.wait(lambda: self._room > 0, math.inf)
            part = frames[self.sent : self.sent + min(self._room, _rows(frames))]
            self.sent += len(part)
            self.ending = self.sent == len(frames)
            self._wire.put(Outgoing(self, frames=part, end=self.ending))

    async def send(self, frames: Array, deadline: float) -> None:
        """Sends a chunk, [k, D], waiting for room in the window. Raises DeadlineExceeded.

        A chunk that fits the window is sent whole or not at all. Of a larger one, the outputs of what was sent come.
        """
        async with self._sending:
            self._check_open()
            wanted = min(len(frames), self.window)
            await self._until_room(lambda: self._room >= wanted and len(self._due) < self.window, deadline)
            self._check_open()
            due = _Due(len(frames), complete=len(frames) <= self._room)
            self._due.append(due)
            start, most = 0, _rows(frames)
            while start < len(frames) or not len(frames):
                part = frames[start : start + min(most, max(self._room, 0))]
                reset, self._reset = self._reset, False
                self._wire.put(Outgoing(self, reset=reset, frames=part))
                self.sent += len(part)
                start += len(part)
                if start == len(frames):
                    break
                if self._room <= 0:
                    try:
                        await self._until_room(lambda: self._room > 0, deadline)
                    except BaseException:
                        due.steps, due.complete = start, True
                        self._complete_due()
                        raise
            due.complete = True
            self._complete_due()
        self.notify()

    def reset(self) -> None:
        """Zeroes the state before the frames that are sent next."""
        self._check_open()
        self._reset = True

    def receive(self) -> Chunk:
        """Takes the next chunk, which must be ready."""
        chunk, unconsumed = self._ready.popleft()
        self.consumed += unconsumed
        self.notify()
        return chunk

    def end(self) -> None:
        """Says that no more frames come."""
        if not self.ending and self.failure is None:
            self.ending = True
            self._wire.put(Outgoing(self, reset=self._reset, end=True))
            self.notify()

    def cancel(self, error: SeqloomError) -> None:
        """Drops the session, if it is not over: the server forgets it."""
        if not self.ended:
            self._wire.put(Outgoing(self, cancel=True))
            self.fail(error)

    def fail(self, error: SeqloomError) -> None:
        """Ends the session with an error."""
        if not self.ended:
            self.failure = error
        self.notify()

    def take(self, entry: inference_service_pb2.SessionResponse) -> None:
        """Takes what the server sent for this session."""
        if entry.HasField("error"):
            self.fail(in_callers_words(from_status(entry.error), self._frames_name))
            return
        if entry.HasField("opened"):
            self.weights_version = entry.opened.weights_version
            self.window = entry.opened.window_steps
        if entry.HasField("outputs"):
            self._take_outputs(entry.outputs)
        if entry.HasField("snapshot"):
            self.snapshot = Snapshot(entry.snapshot.steps, convert.state_of(entry.snapshot.state))
        if entry.HasField("ended"):
            timing = entry.ended.timing
            self.timing = Timing(timing.queue_seconds, timing.compute_seconds)
            self.final_state = convert.state_of(entry.ended.final_state)
        self.notify()

    async def wait(self, condition: Callable[[], bool], deadline: float) -> None:
        """Waits until something holds. Raises what the session failed with; TimeoutError at `deadline`."""
        while not condition():
            if self.failure is not None:
                raise self.failure
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            async with asyncio.timeout(None if deadline == math.inf else deadline - time.monotonic()):
                await waiting

    async def _until_room(self, condition: Callable[[], bool], deadline: float) -> None:
        try:
            await self.wait(condition, deadline)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self.sent - self.consumed} steps are sent and not received, of a window of {self.window}: "
                "receive outputs before sending more",
                reason="WINDOW_FULL",
            ) from None

    @property
    def _room(self) -> int:
        return self.window - (self.sent - self.consumed)

    def _check_open(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self.ending:
            raise InvalidArgument("the stream is finished: it takes no more frames", reason="SESSION_ENDED")

    def notify(self) -> None:
        """Lets everything that waits look again."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _take_outputs(self, message: inference_service_pb2.SessionOutputs) -> None:
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
            cut = slice(at, at + steps)
            due.parts.append((None if values is None else values[cut], None if labels is None else labels[cut]))
            due.got += steps
            at += steps
            self._complete_due()
            if at == rows:
                break
        if self._due:  # what is there of a chunk counts as consumed: else one larger than the window could not be sent
            due = self._due[0]
            self.consumed += due.got - due.consumed
            due.consumed = due.got

    def _complete_due(self) -> None:
        """Moves the first chunk to the ready ones if all of it is there."""
        if (
            not self._due
            or not self._due[0].complete
            or self._due[0].got < self._due[0].steps
            or not self._due[0].parts
        ):
            return
        due = self._due.popleft()
        unconsumed = due.steps - due.consumed
        if self._greedy:
            self.consumed, unconsumed = self.consumed + unconsumed, 0
        self._ready.append((Chunk(due.first_step, convert.joined_outputs(due.parts)), unconsumed))


def _rows(frames: Array) -> int:
    """How many rows of these frames make an entry."""
    return max(1, _ENTRY_BYTES // int(frames.shape[1] * frames.itemsize))
