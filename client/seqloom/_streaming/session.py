"""One session of the shared call as the caller's side keeps it: its window, what is due, and how it ended.

A live session pays for its chunks out of its client's budget; what a whole sequence takes was asked for by its caller.

Everything here runs on one event loop.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Protocol

from seqloom._messages import arguments
from seqloom._retries import until
from seqloom._streaming.chunk_assembly import ChunkAssembly
from seqloom._streaming.deadline_timer import Clock, Deadline, Waiter
from seqloom._streaming.outgoing_entry import OutgoingEntry
from seqloom._streaming.stream_budget import CHUNK_BYTES, Share, StreamBudget
from seqloom.errors import DeadlineExceeded, InvalidArgument, SeqloomError, from_status, in_callers_words
from seqloom.tensors import Array
from seqloom.types import Chunk, Snapshot, State, Timing
from seqloom.v1 import inference_service_pb2

INITIAL_WINDOW = 64  # steps that every server takes before it has told its window
_ENTRY_BYTES = 256 << 10  # of frames in one entry, so that sessions of one call take turns


class Wire(Protocol):
    """Where a session's entries go. clock: for all that wait for its sessions."""

    clock: Clock

    def put(self, entry: OutgoingEntry) -> None: ...


class Session:
    """An open session. Its failure, if it has one, is raised by whatever waits for it, and by everything later.

    frames_name: what the caller calls the frames. budget: the client's; by default one of its own. step_bytes: what
    the outputs of a step take, to be set before anything is sent. share: what it holds of the budget.
    """

    def __init__(
        self, wire: Wire, number: int, window: int, *, frames_name: str = "frames", budget: StreamBudget | None = None
    ) -> None:
        self.number = number
        self.window = window
        self.step_bytes = 0
        self.sent = 0
        self.weights_version = 0
        self.snapshot: Snapshot | None = None
        self.final_state: State | None = None
        self.timing: Timing | None = None
        self.failure: SeqloomError | None = None
        self.ending = False
        self._wire = wire
        self._frames_name = frames_name
        self._reset = False
        self._chunks = ChunkAssembly()
        self.share = Share(budget or StreamBudget())
        self._waiting: set[Waiter] = set()
        self._sending = asyncio.Lock()  # a chunk goes out whole before the next one begins
        self._senders = 0  # that hold it or wait for it

    @property
    def received(self) -> int:
        """Steps whose outputs the caller has received."""
        return self._chunks.received

    @property
    def ready(self) -> bool:
        """Whether a chunk can be received."""
        return self._chunks.ready

    @property
    def due(self) -> bool:
        """Whether outputs are still to come, or to be received."""
        return self._chunks.ready or self._chunks.missing > 0

    @property
    def due_since(self) -> float | None:
        """When the chunk was sent whose outputs come next, on time.monotonic's clock; None where none is missing."""
        return self._chunks.missing_since

    @property
    def exhausted(self) -> bool:
        """Whether it has ended well and everything was received."""
        return self.final_state is not None and not self.due

    @property
    def ended(self) -> bool:
        """Whether nothing more comes: everything is there, or the session has failed."""
        return self.final_state is not None or self.failure is not None

    def open(self, message: inference_service_pb2.OpenSession) -> None:
        """Opens a live session."""
        self._wire.put(OutgoingEntry(self, open=message.SerializeToString()))

    def open_whole(self, message: inference_service_pb2.OpenSession, frames: Array) -> None:
        """Opens the session of a whole sequence; as much of it goes along as the window takes.

        The frames must not change until the session has ended.
        """
        self._chunks.expect(len(frames), early=True)
        part = frames[: min(self.window, _rows(frames))]
        self.sent = len(part)
        self.ending = len(part) == len(frames)
        message.whole_sequence = not self.ending
        self._wire.put(OutgoingEntry(self, open=message.SerializeToString(), frames=part, end=self.ending))

    async def feed_rest(self, frames: Array) -> None:
        """Sends what open_whole() left of a whole sequence, and its end."""
        while self.sent < len(frames):
            await self.wait(lambda: self._room > 0, math.inf)
            part = frames[self.sent : self.sent + min(self._room, _rows(frames))]
            self.sent += len(part)
            self.ending = self.sent == len(frames)
            self._wire.put(OutgoingEntry(self, frames=part, end=self.ending))

    async def send(self, frames: Array, deadline: float) -> None:
        """Sends a copy of a chunk, [k, D], waiting for room in the window and the budget. Raises DeadlineExceeded.

        A chunk that fits the window is sent whole or not at all. Of a larger one, the outputs of what was sent come.
        """
        cost = self._cost(len(frames))
        size = cost + frames.nbytes
        if not self._senders and self._fits(frames):
            self._check_open()
            if self.share.take(size):
                self._chunks.expect(len(frames), early=False, cost=cost)
                self._put(frames)
                return
        await self._take_turn(deadline)
        try:
            self._check_open()
            least = min(len(frames), self.window)
            entries = max(1, math.ceil(least / _rows(frames)))  # which the server bounds, too
            await self._until(
                lambda: self._room >= least and self._chunks.missing + entries <= self.window,
                deadline,
                self._window_full,
            )
            await self._pay(size, deadline)
            due, start = self._chunks.expect(len(frames), early=len(frames) > self.window, cost=cost), 0
            try:
                while True:
                    part = frames[start : start + min(self._room, _rows(frames))]
                    self._put(part)
                    start += len(part)
                    if start == len(frames):
                        break
                    await self._until(lambda: self._room > 0, deadline, self._window_full)
            except BaseException:
                saved = self._chunks.shorten(due, start, self._cost(start))
                self.share.give_back(saved + frames[start:].nbytes)
                raise
        finally:
            self._end_turn()

    def reset(self) -> None:
        """Zeroes the state before the frames that are sent next."""
        self._check_open()
        self._reset = True

    def receive(self) -> Chunk:
        """Takes the next chunk, which must be ready."""
        chunk, cost = self._chunks.receive()
        self.share.give_back(cost)
        self.notify()
        return chunk

    async def end(self, deadline: float) -> None:
        """Says that no more frames come, once those that are being sent are. Raises DeadlineExceeded."""
        await self._take_turn(deadline)
        try:
            if not self.ending and self.failure is None:
                self.ending = True
                self._wire.put(OutgoingEntry(self, reset=self._reset, end=True))
        finally:
            self._end_turn()

    def cancel(self, error: SeqloomError) -> None:
        """Drops the session, if it is not over: the server forgets it. What can be received still can."""
        if not self.ended:
            self._wire.put(OutgoingEntry(self, cancel=True))
            self.fail(error)
        self.share.give_back(self._chunks.disown())

    def fail(self, error: SeqloomError) -> None:
        """Ends the session with an error."""
        if not self.ended:
            self.failure = error
            self.share.give_back(self._chunks.give_up())
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
            self._chunks.take(entry.outputs)
        if entry.HasField("snapshot"):
            self.snapshot = Snapshot(entry.snapshot.steps, arguments.state_of(entry.snapshot.state))
        if entry.HasField("ended"):
            timing = entry.ended.timing
            self.timing = Timing(timing.queue_seconds, timing.compute_seconds)
            self.final_state = arguments.state_of(entry.ended.final_state)
        self.notify()

    async def wait(self, condition: Callable[[], bool], deadline: Deadline) -> None:
        """Waits until something holds. Raises what the session failed with; TimeoutError at `deadline`."""
        while not condition():
            if self.failure is not None:
                raise self.failure
            waiter = Waiter(condition, deadline)
            self._waiting.add(waiter)
            self._wire.clock.watch(waiter)
            try:
                await waiter.woken
            except TimeoutError:
                if self.failure is not None:
                    raise self.failure from None
                if not condition():
                    raise
            finally:
                self._waiting.discard(waiter)
                self._wire.clock.forget(waiter)

    def notify(self) -> None:
        """Lets everything that waits look again."""
        for waiter in self._waiting:
            if self.failure is not None or waiter.condition():
                waiter.wake()

    async def _take_turn(self, deadline: float) -> None:
        self._senders += 1
        try:
            if self._senders == 1:  # it is free
                await self._sending.acquire()
                return
            async with until(deadline):
                await self._sending.acquire()
        except BaseException as error:
            self._senders -= 1
            if isinstance(error, TimeoutError):
                raise self._window_full() from None
            raise

    def _end_turn(self) -> None:
        self._senders -= 1
        self._sending.release()
        self.notify()

    async def _until(
        self, condition: Callable[[], bool], deadline: float, late: Callable[[], DeadlineExceeded]
    ) -> None:
        try:
            await self.wait(condition, deadline)
        except TimeoutError:
            raise late() from None

    async def _pay(self, size: int, deadline: float) -> None:
        """Takes so much of the budget, when it may."""
        self._check_open()  # it may have failed at the moment at which there was room
        if self.share.take(size):
            return
        with self.share.wanting(size, self.notify):
            await self._until(lambda: self.share.admits(size), deadline, self._budget_spent)
            self._check_open()
            self.share.take(size)

    def _window_full(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{self.sent - self.received} steps are sent and not received, of a window of {self.window}: "
            "receive outputs before sending more",
            reason="WINDOW_FULL",
        )

    def _budget_spent(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"the client's streams hold {self.share.describe()}, of frames that are not written and outputs that are "
            "not received: receive outputs, of this stream or another, before sending more",
            reason="WINDOW_FULL",
        )

    def _cost(self, steps: int) -> int:
        """What a chunk takes from now on until it is received, beside its frames."""
        return CHUNK_BYTES + steps * self.step_bytes

    def _fits(self, frames: Array) -> bool:
        """Whether these can go at once, in one entry."""
        return len(frames) <= self._room and frames.nbytes <= _ENTRY_BYTES and self._chunks.missing < self.window

    def _put(self, frames: Array) -> None:
        reset, self._reset = self._reset, False
        # the caller's buffer may hold the next frames by the time this is encoded
        self._wire.put(OutgoingEntry(self, reset=reset, frames=frames.copy(), kept=frames.nbytes))
        self.sent += len(frames)

    @property
    def _room(self) -> int:
        return self.window - (self.sent - self.received)

    def _check_open(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self.ending:
            raise InvalidArgument("the stream is finished: it takes no more frames", reason="SESSION_ENDED")


def _rows(frames: Array) -> int:
    """How many rows of these frames make an entry."""
    return max(1, _ENTRY_BYTES // int(frames.shape[1] * frames.itemsize))
