"""One session of a StreamInfer call: converts its entries to chunks for the engine, and slice results to entries."""

from typing import Protocol

from seqloom.v1 import inference_service_pb2

from seqloom_server.engine.core.sequence import Chunk, OutputSpec, Sequence, SliceResult
from seqloom_server.engine.core.session_window import SessionWindow
from seqloom_server.errors import Reason, ServerError, invalid, over_limit
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc.calls import converters
from seqloom_server.rpc.inference.outbox import Outgoing

_MAX_ENTRY_BYTES = 256 << 10  # of outputs in one entry, so that sessions of one call take turns


class SessionOwner(Protocol):
    """The call that carries a session."""

    def send(self, outgoing: Outgoing) -> None: ...

    def promise(self, size: int) -> None: ...

    def ended(self, number: int) -> None: ...

    def fail(self, number: int, error: ServerError) -> None: ...


class StreamSession:
    """One session, and the sink of its sequence's results.

    max_steps: of a whole sequence; None for a live session. opened_at: by time.monotonic(). step_bytes: charged for the
    outputs of one step. promised: bytes charged for outputs that have not been computed.
    """

    __slots__ = (
        "_call",
        "_entry_rows",
        "_number",
        "_output",
        "_spec",
        "max_steps",
        "model",
        "opened",
        "opened_at",
        "promised",
        "step_bytes",
        "window",
    )

    window: SessionWindow

    def __init__(self, call: SessionOwner, number: int, spec: ModelSpec, output: OutputSpec) -> None:
        self._call = call
        self._number = number
        self._spec = spec
        self._output = output
        self.opened: tuple[int, int] | None = None
        self.max_steps: int | None = None
        self.model = ""
        self.opened_at = 0.0
        self.step_bytes = converters.output_bytes(output, spec)
        self._entry_rows = max(1, _MAX_ENTRY_BYTES // self.step_bytes)
        self.promised = 0

    def outgoing(self) -> Outgoing:
        """Returns a new entry of this session, with `opened` if that was not sent yet."""
        opened, self.opened = self.opened, None
        return Outgoing(self._number, opened)

    def chunks(self, entry: inference_service_pb2.SessionRequest, now: float, unfed: int) -> list[Chunk]:
        """Returns the chunks of an entry; `unfed` earlier ones are not yet in the queue. Raises ServerError."""
        window, reset, end = self.window, entry.reset, entry.end  # reading a message's field is slow
        has_frames = entry.HasField("frames")
        if window.ended and not (has_frames or reset or end):
            return []
        whole_only = self._spec.bidirectional
        if whole_only and reset:
            raise invalid("entries.reset", "is set: a bidirectional model cannot reset its state within a sequence")
        frames = None
        if has_frames:
            frames = converters.frames(entry.frames, self._spec, "entries.frames")
            if whole_only and not len(frames):
                raise invalid("entries.frames", "has 0 steps: expected at least 1 for a bidirectional model")
            if self.max_steps is not None and window.received + len(frames) > self.max_steps:
                raise over_limit(
                    "entries.frames",
                    f"makes {window.received + len(frames)} steps: expected at most {self.max_steps} in a sequence",
                )
        waiting = len(window.sequence.chunks) + unfed
        if waiting >= window.size and not end:  # so chunks without steps are bounded like steps
            raise ServerError(
                Reason.WINDOW_EXCEEDED,
                f"{waiting} chunks are queued: expected fewer than {window.size}; receive outputs before sending more",
            )
        chunks = window.chunks(frames, reset=reset, end=end, acknowledged=entry.acknowledged_steps, now=now)
        # a bidirectional model gives no outputs before the sequence's last frames have arrived
        steps = (window.received if end else 0) if whole_only else 0 if frames is None else len(frames)
        if steps:
            size = steps * self.step_bytes
            self._call.promise(size)
            self.promised += size
        return chunks

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
                    out = Outgoing(self._number, first_step=result.first_step + start, parts=self._spec.state_parts)
                out.values = None if result.values is None else result.values[start : start + rows]
                out.labels = None if result.labels is None else result.labels[start : start + rows]
                out.promised = min(rows, result.steps - start) * self.step_bytes
                self.promised -= out.promised
        elif result.answers:
            out.values, out.labels = converters.empty_outputs(self._output, self._spec)
        elif result.final_state is None and out.opened is None:
            return  # a reset without frames has no output
        out.steps = result.first_step + result.steps
        out.snapshot = result.snapshot
        if result.final_state is not None:
            self._call.ended(self._number)
            out.final_state = result.final_state
            out.timing = (sequence.queue_seconds, sequence.compute_seconds)
        self._call.send(out)

    def fail(self, sequence: Sequence, error: ServerError) -> None:
        self._call.fail(self._number, error)


def only_acknowledges(entry: inference_service_pb2.SessionRequest) -> bool:
    """Returns whether an entry, which neither opens nor cancels a session, only acknowledges steps."""
    return not (entry.HasField("frames") or entry.reset or entry.end)
