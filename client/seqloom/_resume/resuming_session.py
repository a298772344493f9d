"""A live session that goes on after its connection or its server was lost, on another call, as if nothing had happened.

It keeps its last snapshot and what was sent since. On the new call it begins with that state and sends all of it again;
outputs that had come are passed over. So each step's outputs come exactly once and in order.
"""

import math

from seqloom._resume.kept_frames import Kept, KeptFrames
from seqloom._resume.reattachment import Reattachment
from seqloom._resume.resumable import Calls, Resumable
from seqloom._resume.snapshot_interval import SnapshotInterval
from seqloom._streaming.deadline_timer import Waiter
from seqloom._streaming.live_session import LiveSession
from seqloom._streaming.outgoing_entry import OutgoingEntry
from seqloom._streaming.session import EntryQueue
from seqloom._streaming.stream_budget import StreamBudget
from seqloom.errors import DeadlineExceeded
from seqloom.tensors import Array
from seqloom.v1 import inference_service_pb2


class ResumingSession(Resumable, LiveSession):
    """A live session that was opened by `opening`. seconds: for which it is tried to resume it."""

    def __init__(
        self,
        queue: EntryQueue,
        number: int,
        window: int,
        *,
        budget: StreamBudget,
        calls: Calls,
        opening: inference_service_pb2.OpenSession,
        seconds: float,
    ) -> None:
        super().__init__(queue, number, window, budget=budget)
        self._calls = calls
        self._opening = opening
        self._interval = SnapshotInterval(calls.pauses)
        state = opening.initial_state.SerializeToString() if opening.HasField("initial_state") else b""
        self._kept = KeptFrames(state, self._interval)
        self._reattachment = Reattachment(self, calls.pauses, seconds)
        # steps that were sent before it was lost, for which the window had room then; None if it never was
        self._granted: int | None = None
        self._sender: Waiter | None = None

    @property
    def progress(self) -> int:
        """The number of chunks that were answered."""
        return self._chunks.completed

    @property
    def acknowledged(self) -> int:
        """Steps that the caller has received, or that it had room for, of those whose outputs this call has sent."""
        chunks, granted = self._chunks, self._granted
        return chunks.received if granted is None else min(max(chunks.received, granted), chunks.seen)

    def set_sizes(self, step_bytes: int, state_bytes: int) -> None:
        super().set_sizes(step_bytes, state_bytes)
        self._interval.state_bytes = state_bytes
        self._interval.restart()
        self._room_to_keep = self._kept.room

    def reopen(self) -> None:
        """Opens it again, after its last snapshot. Raises Cancelled once the client is closed."""
        self._calls.attach(self)
        message = inference_service_pb2.OpenSession()
        message.CopyFrom(self._opening)
        message.weights_version = 0  # the fingerprint says which
        if self._kept.state:
            message.initial_state.ParseFromString(self._kept.state)
        message.resumed.steps, message.resumed.fingerprint = self._kept.steps, self._fingerprint
        self._queue.put(OutgoingEntry(self, open=message.SerializeToString()))

    def _take_opened(self, opened: inference_service_pb2.SessionOpened) -> None:
        if not self._reopened(opened):
            super()._take_opened(opened)

    def _take_snapshot(self, entry: inference_service_pb2.SessionResponse) -> None:
        snapshot = entry.snapshot
        self._kept.rebase(snapshot.steps, snapshot.state.SerializeToString(), self._chunks.completed)
        wanted = self._opening.snapshot_interval_steps
        if wanted and snapshot.steps and snapshot.steps % wanted == 0:
            super()._take_snapshot(entry)
        self._room_to_keep = self._kept.room
        if entry.going_away and not entry.HasField("ended"):
            self._go_away()

    def _prepare_return(self) -> None:
        self._granted = self.sent
        self._reset = self._kept.restart(self._chunks.completed) or self._reset
        self._chunks.seen = self._kept.steps
        if self._sender is None:  # each time that anything has changed, it sends what there is room for
            self._sender = Waiter(self._send_kept, math.inf)
            self._waiting.add(self._sender)

    def _cancelling(self) -> OutgoingEntry:
        return OutgoingEntry(self, cancel=True)

    def _stop(self) -> None:
        super()._stop()
        self._kept.clear()
        self._interval.end()

    def _can_keep(self, size: int) -> bool:
        return self._kept.has_room(size)

    def _window_full(self) -> DeadlineExceeded:
        if self.lost is not None:
            return DeadlineExceeded(
                f"the stream was lost and is not resumed yet: {self.lost.message}", reason="TIMEOUT"
            )
        if self.room > 0 and not self._kept.has_room(0):
            return DeadlineExceeded(
                f"{self._kept.size} bytes of frames are kept to be sent again after a failure: the server has not sent "
                "the next snapshot yet",
                reason="WINDOW_FULL",
            )
        return super()._window_full()

    def _put_frames(self, frames: Array, reset: bool) -> None:
        kept, sent, size = self._kept, self.sent, frames.nbytes
        frames = kept.copy_of(frames)
        entry = Kept(sent, frames, self._chunks.expected - 1, reset)
        # as usual, it was never lost: then the window has been looked at
        if self._granted is None or (
            not kept.unsent and self.lost is None and sent + len(frames) <= self.window + self.acknowledged
        ):
            ask = kept.send_at_once(entry, size)
            self._room_to_keep -= size
            self._queue.put(OutgoingEntry(self, reset=reset, frames=frames, held_bytes=size, snapshot=ask))
            return
        self.share.give_back(size)  # it counts as kept
        self._room_to_keep -= size
        kept.add(entry)
        self._send_kept()

    def _put_end(self, reset: bool) -> None:
        self._kept.add(Kept(self.sent, None, self._chunks.expected, reset, end=True))
        self._send_kept()

    def _send_kept(self) -> bool:
        """Sends what is kept and was not sent on this call, as far as the window has room. Returns False."""
        kept = self._kept
        while kept.unsent and self.lost is None:
            first = kept.unsent[0]
            room = self.window - (first.start - self.acknowledged)
            if first.steps and room <= 0:
                break
            entry, ask = kept.send_next(max(1, room))
            self._queue.put(OutgoingEntry(self, reset=entry.reset, frames=entry.frames, end=entry.end, snapshot=ask))
        return False
