"""The client's side of one session: its window, its pending outputs, its final state or failure.

A session is a live stream or a whole sequence. The chunks of a live stream count against the client's stream budget; a
whole sequence does not, as its caller asked for all its outputs at once.

Everything here runs on one event loop.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Protocol

from seqloom._messages import arguments
from seqloom._retries import until
from seqloom._streaming.chunk_assembly import ChunkAssembly
from seqloom._streaming.deadline_timer import Deadline, DeadlineTimer, Waiter
from seqloom._streaming.outgoing_entry import OutgoingEntry
from seqloom._streaming.stream_budget import CHUNK_BYTES, BudgetShare, StreamBudget
from seqloom.errors import DeadlineExceeded, InvalidArgument, SeqloomError, from_status, with_argument_names
from seqloom.tensors import Array
from seqloom.types import Chunk, Snapshot, State, Timing
from seqloom.v1 import inference_service_pb2

INITIAL_WINDOW = 64  # steps that every server accepts before it has sent its window
_ENTRY_BYTES = 256 << 10  # of frames in one entry, so that the sessions of a call take turns


class EntryQueue(Protocol):
    """Sends the entries of sessions. timer: holds the deadlines of all waits for these sessions."""

    timer: DeadlineTimer

    def put(self, entry: OutgoingEntry) -> None: ...


class Session:
    """One session of a shared call. If it fails, every wait for it and every later call raise its failure.

    frames_name: the caller's name of the frames, for error messages. budget: the client's; None for one of its own.
    step_bytes: size of the outputs of one step, to be set before the first send. share: the bytes that the session
    holds of the budget. opened: whether the entry that opens it was written.
    """

    def __init__(
        self,
        queue: EntryQueue,
        number: int,
        window: int,
        *,
        frames_name: str = "frames",
        budget: StreamBudget | None = None,
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
        self.opened = False
        self.ending = False
        self._queue = queue
        self._frames_name = frames_name
        self._deadline = math.inf  # of a whole sequence
        self._reset = False
        self._asked = False
        self._chunks = ChunkAssembly()
        self.share = BudgetShare(budget or StreamBudget())
        self._waiting: set[Waiter] = set()
        self._sending = asyncio.Lock()  # a chunk is sent whole before the next one starts
        self._senders = 0  # callers that hold the lock or wait for it

    @property
    def received(self) -> int:
        """Steps whose outputs the caller has received."""
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
    def ended(self) -> bool:
        """Whether the session has ended: all outputs have arrived, or it has failed."""
        return self.final_state is not None or self.failure is not None

    def open(self, message: inference_service_pb2.OpenSession, deadline: float) -> None:
        """Opens a live session, unless the deadline passes before it can be sent.

        The server is told no timeout: it would count until the first frames have run, and these may come at any time.
        """
        self._queue.put(OutgoingEntry(self, open=message.SerializeToString(), deadline=deadline))

    def open_whole(
        self, message: inference_service_pb2.OpenSession, frames: Array, deadline: float, *, ask: bool = False
    ) -> None:
        """Opens the session of a whole sequence, and sends as many frames with it as the window allows.

        The frames must not change until the session has ended. ask: sends none until the server has admitted them.
        """
        self._deadline = deadline
        self._asked = ask
        self._chunks.expect(len(frames), received_on_arrival=True)
        part = frames[: 0 if ask else min(self.window, _rows_per_entry(frames))]
        self.sent = len(part)
        self.ending = len(part) == len(frames)
        if not self.ending:
            message.whole_sequence, message.total_steps = True, len(frames)
        opening = message.SerializeToString()
        self._queue.put(
            OutgoingEntry(
                self,
                open=opening,
                frames=None if ask else part,
                end=self.ending,
                deadline=deadline,
                tell_timeout=True,
            )
        )

    async def send_rest(self, frames: Array, deadline: float) -> None:
        """Sends the frames that open_whole() has not sent, and the end of the sequence. Raises TimeoutError."""
        if self._asked:
            await self.wait(lambda: self.weights_version > 0, deadline)
        while self.sent < len(frames):
            await self.wait(lambda: self._room > 0, deadline)
            part = frames[self.sent : self.sent + min(self._room, _rows_per_entry(frames))]
            self.sent += len(part)
            self.ending = self.sent == len(frames)
            self._queue.put(OutgoingEntry(self, frames=part, end=self.ending, deadline=self._deadline))

    async def send(self, frames: Array, deadline: float) -> None:
        """Sends a copy of a chunk, [k, D], when the window and the budget have room. Raises DeadlineExceeded.

        A chunk that fits into the window is sent whole or not at all. If only a part of a larger chunk could be sent,
        the outputs of this part are returned.
        """
        cost = self._cost(len(frames))
        size = cost + frames.nbytes
        if not self._senders and self._fits(frames):
            self._check_open()
            if self.share.take(size):
                self._chunks.expect(len(frames), received_on_arrival=False, cost=cost)
                self._send_frames(frames)
                return
        await self._take_turn(deadline)
        try:
            self._check_open()
            least = min(len(frames), self.window)
            entries = max(1, math.ceil(least / _rows_per_entry(frames)))  # their number is bounded by the server, too
            await self._until(
                lambda: self._room >= least and self._chunks.missing + entries <= self.window,
                deadline,
                self._window_full,
            )
            await self._take_budget(size, deadline)
            larger = len(frames) > self.window
            pending = self._chunks.expect(len(frames), received_on_arrival=larger, cost=cost)
            start = 0
            try:
                while True:
                    part = frames[start : start + min(self._room, _rows_per_entry(frames))]
                    self._send_frames(part)
                    start += len(part)
                    if start == len(frames):
                        break
                    await self._until(lambda: self._room > 0, deadline, self._window_full)
            except BaseException:
                saved = self._chunks.shorten(pending, start, self._cost(start))
                self.share.give_back(saved + frames[start:].nbytes)
                raise
        finally:
            self._end_turn()

    def reset(self) -> None:
        """Sets the hidden state to zero before the next frames."""
        self._check_open()
        self._reset = True

    def receive(self) -> Chunk:
        """Returns the outputs of the next chunk, which must be ready."""
        chunk, cost = self._chunks.receive()
        self.share.give_back(cost)
        self.notify()
        return chunk

    async def end(self, deadline: float) -> None:
        """Ends the sequence after all frames that are being sent. Raises DeadlineExceeded."""
        await self._take_turn(deadline)
        try:
            if not self.ending and self.failure is None:
                self.ending = True
                self._queue.put(OutgoingEntry(self, reset=self._reset, end=True))
        finally:
            self._end_turn()

    def cancel(self, error: SeqloomError) -> None:
        """Cancels the session, unless it has ended. Chunks that are ready can still be received."""
        if not self.ended:
            self._queue.put(OutgoingEntry(self, cancel=True))
            self.fail(error)
        self.share.give_back(self._chunks.release_ready())

    def fail(self, error: SeqloomError) -> None:
        """Ends the session with an error, unless it has ended."""
        if not self.ended:
            self.failure = error
            self.share.give_back(self._chunks.drop_pending())
        self.notify()

    def take(self, entry: inference_service_pb2.SessionResponse) -> None:
        """Handles a response of the server for this session."""
        if entry.HasField("error"):
            self.fail(with_argument_names(from_status(entry.error), self._frames_name))
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

    async def _take_turn(self, deadline: float) -> None:
        self._senders += 1
        try:
            if self._senders == 1:  # the lock is free
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

    async def _take_budget(self, size: int, deadline: float) -> None:
        """Takes bytes of the budget as soon as they are available."""
        self._check_open()  # it may have failed at the moment when the window had room
        if self.share.take(size):
            return
        with self.share.waiting_for(size, self.notify):
            await self._until(lambda: self.share.has_room(size), deadline, self._budget_spent)
            self._check_open()
            self.share.take(size)

    def _window_full(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{self.sent - self.received} steps are sent and not received, and the window is {self.window}: "
            "receive outputs before sending more",
            reason="WINDOW_FULL",
        )

    def _budget_spent(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"the client's streams hold {self.share.describe()}, in frames that are not sent and outputs that are not "
            "received: receive outputs of this stream or another before sending more",
            reason="WINDOW_FULL",
        )

    def _cost(self, steps: int) -> int:
        """Returns the bytes that a chunk holds of the budget until it is received, beside its frames."""
        return CHUNK_BYTES + steps * self.step_bytes

    def _fits(self, frames: Array) -> bool:
        """Returns whether frames can be sent at once, in one entry."""
        return len(frames) <= self._room and frames.nbytes <= _ENTRY_BYTES and self._chunks.missing < self.window

    def _send_frames(self, frames: Array) -> None:
        reset, self._reset = self._reset, False
        # a copy: the caller may change the array before it is encoded
        self._queue.put(OutgoingEntry(self, reset=reset, frames=frames.copy(), held_bytes=frames.nbytes))
        self.sent += len(frames)

    @property
    def _room(self) -> int:
        return self.window - (self.sent - self.received)

    def _check_open(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self.ending:
            raise InvalidArgument("the stream is finished: no more frames can be sent", reason="SESSION_ENDED")


def _rows_per_entry(frames: Array) -> int:
    """Returns how many rows of these frames fit into one entry."""
    return max(1, _ENTRY_BYTES // int(frames.shape[1] * frames.itemsize))
