"""One session of a StreamInfer call: converts its entries to chunks for the engine, and slice results to entries."""

import collections
from typing import Protocol

from google.rpc import status_pb2
from seqloom.v1 import inference_service_pb2

from seqloom_server.engine.core.sequence import Chunk, Sequence, SliceResult
from seqloom_server.engine.core.session_window import SessionWindow
from seqloom_server.errors import Reason, ServerError, invalid, over_limit
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc.calls import converters
from seqloom_server.rpc.inference.outbox import Entry
from seqloom_server.rpc.inference.outgoing import Opened, Outgoing
from seqloom_server.rpc.inference.session_opening import SessionOpening

MAX_ENTRY_BYTES = 256 << 10  # of outputs in one entry, so that sessions of one call take turns

_END = inference_service_pb2.SessionRequest(end=True)


class SessionOwner(Protocol):
    """The call that carries a session."""

    def send(self, outgoing: Entry) -> None: ...

    def promise(self, size: int, *, live: bool) -> None: ...

    def withdraw(self, size: int, *, live: bool) -> None: ...

    def status(self, error: ServerError) -> status_pb2.Status: ...

    def ended(self, number: int) -> None: ...

    def fail(self, number: int, error: ServerError) -> None: ...


class StreamSession:
    """One session, and the sink of its sequence's results.

    live: whether it is a live session, not a whole sequence. opened_at: by time.monotonic(). promised: bytes charged
    for outputs that have not been computed.
    """

    __slots__ = (
        "_asked",
        "_call",
        "_entry_rows",
        "_number",
        "_opening",
        "_spec",
        "_step_bytes",
        "begun",
        "live",
        "model",
        "opened",
        "opened_at",
        "promised",
        "window",
    )

    window: SessionWindow

    def __init__(self, call: SessionOwner, number: int, spec: ModelSpec, opening: SessionOpening) -> None:
        self._call = call
        self._number = number
        self._spec = spec
        self._opening = opening
        self.live = not opening.whole
        self.begun = False  # whether it is a whole sequence that did not end with its first entry
        self.opened: Opened | None = None
        self.model = ""
        self.opened_at = 0.0
        self._step_bytes = opening.step_bytes
        self._entry_rows = max(1, MAX_ENTRY_BYTES // self._step_bytes)
        self.promised = 0
        # for each state that is asked for and not sent: the bytes charged, and whether because the server goes away
        self._asked: collections.deque[tuple[int, bool]] | None = None

    @property
    def streams(self) -> int:
        """The live streams that it is: none if it is a whole sequence."""
        return int(self.live)

    def outgoing(self) -> Outgoing:
        """Returns a new entry of this session, with `opened` if that was not sent yet."""
        opened, self.opened = self.opened, None
        return Outgoing(self._number, opened, live=self.live)

    def chunks(self, entry: inference_service_pb2.SessionRequest, now: float, unfed: int) -> list[Chunk]:
        """Returns the chunks of an entry; `unfed` earlier ones are not yet in the queue. Raises ServerError."""
        window, reset, end = self.window, entry.reset, entry.end  # reading a message's field is slow
        has_frames, asks = entry.HasField("frames"), entry.snapshot
        if window.ended and not (has_frames or reset or end or asks):
            return []
        if asks and not self.live:
            raise invalid("entries.snapshot", "is set: expected false for a whole sequence")
        whole_only = self._spec.bidirectional
        if whole_only and reset:
            raise invalid("entries.reset", "is set: a bidirectional model cannot reset its state within a sequence")
        frames = None
        if has_frames:
            frames = converters.frames(entry.frames, self._spec, "entries.frames")
            if whole_only and not len(frames):
                raise invalid("entries.frames", "has 0 steps: expected at least 1 for a bidirectional model")
            if not self.live and window.received + len(frames) > self._opening.most_steps:
                raise over_limit(
                    "entries.frames",
                    f"makes {window.received + len(frames)} steps: expected at most {self._opening.most_steps} in a "
                    "sequence",
                )
        if self._opening.total_steps:
            self._check_steps(0 if frames is None else len(frames), end)
        waiting = len(window.sequence.chunks) + unfed
        if waiting >= window.size and not end:  # so chunks without steps are bounded like steps
            raise ServerError(
                Reason.WINDOW_EXCEEDED,
                f"{waiting} chunks are queued: expected fewer than {window.size}; receive outputs before sending more",
            )
        chunks = window.chunks(frames, reset=reset, end=end, acknowledged=entry.acknowledged_steps, now=now, asks=asks)
        # a bidirectional model gives no outputs before the sequence's last frames have arrived
        steps = (window.received if end else 0) if whole_only else 0 if frames is None else len(frames)
        asked = converters.state_bytes(self._spec) if asks else 0
        if steps or asked:
            size = steps * self._step_bytes + asked
            self._call.promise(size, live=self.live)
            self.promised += size
        if asked:
            self._ask(asked, going_away=False)
        return chunks

    def _ask(self, charged: int, *, going_away: bool) -> None:
        if self._asked is None:  # as for most sessions
            self._asked = collections.deque()
        self._asked.append((charged, going_away))

    def leaving(self, now: float) -> list[Chunk]:
        """Returns the chunks by which the caller is told, with a snapshot, that the server goes away."""
        chunks = self.window.asking(now) if self.live else []
        if chunks:
            self._ask(0, going_away=True)
        return chunks

    def ending(self, now: float) -> list[Chunk]:
        """Returns the chunks that end the session, whose caller has closed the stream. Raises ServerError."""
        return self.chunks(_END, now, 0)

    def _check_steps(self, steps: int, end: bool) -> None:
        """Raises INVALID_FIELD for a whole sequence that is longer than it said, or ends before that."""
        received, said = self.window.received + steps, self._opening.total_steps
        if received > said or (end and received < said):
            raise invalid(
                "entries.open.total_steps",
                f"is {said}, but the sequence has {received} steps" + (" at its end" if end else " so far"),
            )

    def deliver(self, sequence: Sequence, result: SliceResult) -> None:
        out = self.outgoing()
        out.parts = self._spec.state_parts
        out.first_step = result.first_step
        if result.steps:
            self.window.answered += result.steps
            rows = self._entry_rows
            for start in range(0, result.steps, rows):
                if start:
                    self._call.send(out)
                    out = self.outgoing()
                    out.first_step, out.parts = result.first_step + start, self._spec.state_parts
                out.values = None if result.values is None else result.values[start : start + rows]
                out.labels = None if result.labels is None else result.labels[start : start + rows]
                out.promised = min(rows, result.steps - start) * self._step_bytes
                self.promised -= out.promised
        elif result.answers:
            out.values, out.labels = converters.empty_outputs(self._opening.output, self._spec)
        elif result.final_state is None and result.states is None and out.opened is None:
            return  # a reset without frames has no output
        out.steps = result.first_step + result.steps
        out.snapshot = result.snapshot
        if result.states is not None and self._asked:
            charged, out.going_away = self._asked.popleft()
            out.snapshot = result.states
            out.promised += charged
            self.promised -= charged
        if result.final_state is not None:
            self._call.ended(self._number)
            out.final_state = result.final_state
            out.timing = (sequence.queue_seconds, sequence.compute_seconds)
        self._call.send(out)

    def fail(self, sequence: Sequence, error: ServerError) -> None:
        self._call.fail(self._number, error)


def only_acknowledges(entry: inference_service_pb2.SessionRequest) -> bool:
    """Returns whether an entry, which neither opens nor cancels a session, only acknowledges steps."""
    return not (entry.HasField("frames") or entry.reset or entry.end or entry.snapshot)
