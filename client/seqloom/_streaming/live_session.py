"""The client's side of a live stream's session, whose chunks count against the client's stream budget."""

import asyncio
import math
from collections.abc import Callable

from seqloom._retries import until
from seqloom._streaming.outgoing_entry import OutgoingEntry
from seqloom._streaming.session import ENTRY_BYTES, EntryQueue, Session, rows_per_entry
from seqloom._streaming.stream_budget import CHUNK_BYTES, BudgetShare, StreamBudget
from seqloom.errors import DeadlineExceeded, InvalidArgument, SeqloomError
from seqloom.tensors import Array
from seqloom.types import Chunk
from seqloom.v1 import inference_service_pb2


class LiveSession(Session):
    """A session whose frames come by and by, in chunks.

    budget: the client's; None for one of its own. step_bytes: size of the outputs of one step. share: the bytes that
    the session holds of the budget.
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
        super().__init__(queue, number, window, frames_name)
        self.step_bytes = 0
        self.share = BudgetShare(budget or StreamBudget())
        self._reset = False
        self._room_to_keep = math.inf  # bytes of frames that may be kept for a resumption, for sure
        self._sending = asyncio.Lock()  # a chunk is sent whole before the next one starts
        self._senders = 0  # callers that hold the lock or wait for it

    @property
    def lost(self) -> SeqloomError | None:
        """Why it is on no call at present, if it is to be resumed; None while it is."""
        return None

    def set_sizes(self, step_bytes: int, state_bytes: int) -> None:
        """Sets the sizes of the outputs of one step and of the state, before the first send."""
        self.step_bytes = step_bytes

    def open(self, message: inference_service_pb2.OpenSession, deadline: float) -> None:
        """Opens a live session, unless the deadline passes before it can be sent.

        The server is told no timeout: it would count until the first frames have run, and these may come at any time.
        """
        self._queue.put(OutgoingEntry(self, open=message.SerializeToString(), deadline=deadline))

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
            await self._until(lambda: self._has_room(frames), deadline, self._window_full)
            await self._take_budget(size, deadline)
            larger = len(frames) > self.window
            pending = self._chunks.expect(len(frames), received_on_arrival=larger, cost=cost)
            start = 0
            try:
                while True:
                    part = frames[start : start + min(self.room, rows_per_entry(frames))]
                    self._send_frames(part)
                    start += len(part)
                    if start == len(frames):
                        break
                    await self._until(lambda: self.room > 0, deadline, self._window_full)
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
        """Returns the outputs of the next chunk, which must be ready, and frees what it held of the budget."""
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
                self._put_end(self._reset)
        finally:
            self._end_turn()

    def cancel(self, error: SeqloomError) -> None:
        """Cancels the session, unless it has ended. Chunks that are ready can still be received, and hold nothing."""
        super().cancel(error)
        self.share.give_back(self._chunks.release_ready())

    def release_budget(self, size: int) -> None:
        """Returns bytes to the budget that the session took for an entry."""
        self.share.give_back(size)

    def _drop_pending(self) -> None:
        self.share.give_back(self._chunks.drop_pending())

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
        return (
            len(frames) <= self.room
            and frames.nbytes <= ENTRY_BYTES
            and self._chunks.missing < self.window
            and frames.nbytes <= self._room_to_keep
        )

    def _has_room(self, frames: Array) -> bool:
        """Returns whether a chunk can be sent whole, or begun if it is larger than the window."""
        least = min(len(frames), self.window)
        entries = max(1, math.ceil(least / rows_per_entry(frames)))  # their number is bounded by the server, too
        return self.room >= least and self._chunks.missing + entries <= self.window and self._can_keep(frames.nbytes)

    def _can_keep(self, size: int) -> bool:
        """Returns whether the frames of another chunk may be kept for a resumption."""
        return True

    def _send_frames(self, frames: Array) -> None:
        reset, self._reset = self._reset, False
        self._put_frames(frames, reset)
        self.sent += len(frames)

    def _put_frames(self, frames: Array, reset: bool) -> None:
        """Sends a copy of frames: the caller may change the array before it is encoded."""
        self._queue.put(OutgoingEntry(self, reset=reset, frames=frames.copy(), held_bytes=frames.nbytes))

    def _put_end(self, reset: bool) -> None:
        self._queue.put(OutgoingEntry(self, reset=reset, end=True))

    def _check_open(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self.ending:
            raise InvalidArgument("the stream is finished: no more frames can be sent", reason="SESSION_ENDED")
