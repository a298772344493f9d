"""One session of a StreamInfer call: its entries become chunks for the engine, its pieces entries for the caller."""

from typing import Protocol

from seqloom.v1 import inference_service_pb2

from seqloom_server.engine.core.sequence import Chunk, OutputSpec, Sequence, SliceResult
from seqloom_server.engine.core.session_window import SessionWindow
from seqloom_server.errors import Reason, ServerError, invalid
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc.calls import converters
from seqloom_server.rpc.inference.outbox import Outgoing

_ENTRY_BYTES = 256 << 10  # of outputs in one entry, so that sessions of one call take turns


class Owner(Protocol):
    """The call that a session belongs to."""

    def send(self, outgoing: Outgoing) -> None: ...

    def promise(self, size: int) -> None: ...

    def ended(self, number: int) -> None: ...

    def fail(self, number: int, error: ServerError) -> None: ...


class StreamSession:
    """Where one session's pieces become entries of the call.

    max_steps: how long a whole sequence may be; None for a live session, which has no end. opened_at: on
    time.monotonic's clock. step_bytes: what a step's outputs are charged as. promised: bytes still to come.
    """

    __slots__ = (
        "_entry_rows",
        "_number",
        "_output",
        "_owner",
        "_spec",
        "max_steps",
        "model",
        "opened",
        "opened_at",
        "promised",
        "session",
        "step_bytes",
    )

    session: SessionWindow

    def __init__(self, owner: Owner, number: int, spec: ModelSpec, output: OutputSpec) -> None:
        self._owner = owner
        self._number = number
        self._spec = spec
        self._output = output
        self.opened: tuple[int, int] | None = None
        self.max_steps: int | None = None
        self.model = ""
        self.opened_at = 0.0
        self.step_bytes = converters.output_bytes(output, spec)
        self._entry_rows = max(1, _ENTRY_BYTES // self.step_bytes)
        self.promised = 0

    def outgoing(self) -> Outgoing:
        """A new entry of this session, with `opened` if that is still due."""
        opened, self.opened = self.opened, None
        return Outgoing(self._number, opened)

    def chunks(self, entry: inference_service_pb2.SessionRequest, now: float, unfed: int) -> list[Chunk]:
        """Returns what an entry adds to the sequence, for which `unfed` chunks are under way. Raises ServerError."""
        session, reset, end = self.session, entry.reset, entry.end  # each look into a message has its price
        has_frames = entry.HasField("frames")
        if session.ended and not (has_frames or reset or end):
            return []
        whole = self._spec.bidirectional
        if whole and reset:
            raise invalid("entries.reset", "is set: a bidirectional model has no state to reset within a sequence")
        frames = None
        if has_frames:
            frames = converters.frames(entry.frames, self._spec, "entries.frames")
            if whole and not len(frames):
                raise invalid("entries.frames", "has 0 steps: expected some of a sequence that is run at once")
            if self.max_steps is not None and session.received + len(frames) > self.max_steps:
                raise ServerError(
                    Reason.OVER_LIMIT,
                    f"entries.frames: makes {session.received + len(frames)} steps: a sequence has at most "
                    f"{self.max_steps}",
                    field="entries.frames",
                )
        waiting = len(session.sequence.chunks) + unfed
        if waiting >= session.window and not end:  # so chunks without steps are bounded like steps
            raise ServerError(
                Reason.WINDOW_EXCEEDED, f"{session.window} chunks wait already: receive outputs before sending more"
            )
        chunks = session.chunks(frames, reset=reset, end=end, acknowledged=entry.acknowledged_steps, now=now)
        # outputs of a sequence that runs at once can only come when its last frames have been taken
        steps = (session.received if end else 0) if whole else 0 if frames is None else len(frames)
        if steps:
            size = steps * self.step_bytes
            self._owner.promise(size)
            self.promised += size
        return chunks

    def deliver(self, sequence: Sequence, result: SliceResult) -> None:
        out = self.outgoing()
        out.parts = self._spec.state_parts
        out.first_step = result.first_step
        if result.steps:
            self.session.answered += result.steps
            rows = self._entry_rows
            for start in range(0, result.steps, rows):
                if start:
                    self._owner.send(out)
                    out = Outgoing(self._number, first_step=result.first_step + start, parts=self._spec.state_parts)
                out.values = None if result.values is None else result.values[start : start + rows]
                out.labels = None if result.labels is None else result.labels[start : start + rows]
                out.promised = min(rows, result.steps - start) * self.step_bytes
                self.promised -= out.promised
        elif result.answers:
            out.values, out.labels = converters.empty_outputs(self._output, self._spec)
        elif result.final_state is None and out.opened is None:
            return  # a bare reset: nothing to say
        out.steps = result.first_step + result.steps
        out.snapshot = result.snapshot
        if result.final_state is not None:
            self._owner.ended(self._number)
            out.final_state = result.final_state
            out.timing = (sequence.queue_seconds, sequence.compute_seconds)
        self._owner.send(out)

    def fail(self, sequence: Sequence, error: ServerError) -> None:
        self._owner.fail(self._number, error)


def only_acknowledges(entry: inference_service_pb2.SessionRequest) -> bool:
    """Whether an entry, which opens and cancels nothing, asks for nothing more."""
    return not (entry.HasField("frames") or entry.reset or entry.end)
