"""One StreamInfer call: its sessions by the caller's numbers, what goes into the engine, and what comes back out.

Whatever is due when the transport is free travels in one message, so that messages grow fewer as load grows.
"""

import asyncio
import collections
import time
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import status_pb2
from seqloom.v1 import inference_service_pb2

from seqloom_server.config import ServerConfig
from seqloom_server.engine.engine import Engine
from seqloom_server.engine.request import Array, Chunk, Op, OutputSpec, Piece, Sequence, StateArrays
from seqloom_server.engine.sessions import Session, empty_frames
from seqloom_server.errors import Reason, ServerError
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc import convert
from seqloom_server.rpc.interceptors import request_id
from seqloom_server.rpc.status import status_of

_WINDOW_BYTES = 8 << 20  # of outputs that one session may leave unread
_ENTRY_BYTES = 256 << 10  # of outputs in one entry, so that sessions of one call take turns


@dataclass(slots=True)
class Outgoing:
    """One entry that is due: arrays, not messages, so that a message is built once, in its place, when it is sent.

    steps: the session's steps up to the snapshot or the end. timing: queue and compute seconds.
    """

    number: int
    opened: inference_service_pb2.SessionOpened | None = None
    first_step: int = 0
    values: Array | None = None
    labels: Array | None = None
    steps: int = 0
    snapshot: StateArrays | None = None
    final_state: StateArrays | None = None
    timing: tuple[float, float] = (0.0, 0.0)
    error: status_pb2.Status | None = None

    @property
    def size(self) -> int:
        """About how many bytes the entry takes."""
        arrays = (self.values, self.labels, *(self.snapshot or ()), *(self.final_state or ()))
        return sum(array.nbytes + 24 for array in arrays if array is not None) + (4096 if self.error else 48)

    def fill(self, entry: inference_service_pb2.SessionResponse) -> None:
        """Writes this into an empty entry of a message."""
        entry.session = self.number
        if self.opened is not None:
            entry.opened.CopyFrom(self.opened)
        if self.values is not None or self.labels is not None:
            entry.outputs.first_step = self.first_step
            convert.fill_outputs(entry.outputs.outputs, self.values, self.labels)
        if self.snapshot is not None:
            entry.snapshot.steps = self.steps
            convert.fill_state(entry.snapshot.state, self.snapshot)
        if self.final_state is not None:
            entry.ended.steps = self.steps
            convert.fill_state(entry.ended.final_state, self.final_state)
            entry.ended.timing.queue_seconds, entry.ended.timing.compute_seconds = self.timing
        if self.error is not None:
            entry.error.CopyFrom(self.error)


class SessionCall:
    """The sessions of one call. `receive` takes messages, `write_to` sends until the call is over."""

    def __init__(self, engine: Engine, config: ServerConfig) -> None:
        self._engine = engine
        self._config = config
        self._sinks: dict[int, SessionSink] = {}
        self._outbox: collections.deque[Outgoing] = collections.deque()
        self._due = asyncio.Event()
        self._half_closed = False
        self._request_id = request_id()

    def receive(self, request: inference_service_pb2.StreamInferRequest) -> None:
        """Takes a message; what is wrong with an entry fails that entry's session alone."""
        now = time.monotonic()
        work: list[tuple[Sequence, list[Chunk]]] = []
        for entry in request.entries:
            try:
                sink = self._open(entry, now) if entry.HasField("open") else self._sink(entry)
                if entry.cancel:
                    self._drop(entry.session)
                    continue
                chunks = sink.chunks(entry, now)
                if chunks:
                    work.append((sink.session.sequence, chunks))
            except ServerError as error:
                self._drop(entry.session)
                self.fail(entry.session, error)
        if work:
            for sequence, error in self._engine.feed(work):
                sequence.sink.fail(sequence, error)

    def half_close(self) -> None:
        """The caller sends nothing more: sessions that it left open end after what is queued."""
        self._half_closed = True
        now = time.monotonic()
        open_sinks = [sink for sink in self._sinks.values() if not sink.session.ended]
        ends = inference_service_pb2.SessionRequest(end=True)
        work = [(sink.session.sequence, sink.chunks(ends, now)) for sink in open_sinks]
        for sequence, error in self._engine.feed(work):
            sequence.sink.fail(sequence, error)
        self._due.set()

    def close(self) -> None:
        """Drops whatever is still open."""
        self._engine.cancel([sink.session.sequence for sink in self._sinks.values()])
        self._sinks.clear()

    async def write_to(self, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        """Sends what is due, as long as there is or may come something."""
        while True:
            while self._outbox:
                await context.write(self._next_message())
            if self._half_closed and not self._sinks:
                return
            self._due.clear()
            await self._due.wait()

    def send(self, outgoing: Outgoing) -> None:
        self._outbox.append(outgoing)
        self._due.set()

    def fail(self, number: int, error: ServerError) -> None:
        """Tells the caller that this session has failed; it is gone."""
        self._sinks.pop(number, None)
        self.send(Outgoing(number, error=status_of(error, self._request_id)))

    def ended(self, number: int) -> None:
        self._sinks.pop(number, None)

    def _next_message(self) -> inference_service_pb2.StreamInferResponse:
        message = inference_service_pb2.StreamInferResponse()
        room = self._config.max_stream_message_bytes
        while self._outbox and (not message.entries or self._outbox[0].size <= room):
            outgoing = self._outbox.popleft()
            outgoing.fill(message.entries.add())
            room -= outgoing.size
        return message

    def _sink(self, entry: inference_service_pb2.SessionRequest) -> "SessionSink":
        sink = self._sinks.get(entry.session)
        if sink is None:
            raise ServerError(
                Reason.SESSION_NOT_OPEN,
                f"session {entry.session} is not open: the first entry of a session has `open`",
                field="entries.open",
            )
        return sink

    def _open(self, entry: inference_service_pb2.SessionRequest, now: float) -> "SessionSink":
        number, wanted = entry.session, entry.open
        if number in self._sinks:
            raise ServerError(
                Reason.SESSION_EXISTS, f"session {number} is open already: it has been dropped", field="entries.session"
            )
        weights = self._engine.registry.current(wanted.model, wanted.weights_version)
        spec = weights.network.spec
        output = convert.output_spec(wanted.output, spec, "entries.open.output")
        initial = None
        if wanted.HasField("initial_state"):
            initial = convert.state(wanted.initial_state, spec, 1, "entries.open.initial_state")
        timeout = convert.timeout(wanted.timeout_seconds, "entries.open.timeout_seconds")
        whole = wanted.whole_sequence or (entry.HasField("frames") and entry.end)
        sink = SessionSink(self, number, spec, output)
        sequence = self._engine.open(
            weights,
            Op.INFER if whole else Op.STREAM,
            output,
            sink,
            initial_state=initial,
            deadline=None if timeout is None else now + timeout,
            snapshot_interval=wanted.snapshot_interval_steps,
        )
        row_bytes = convert.output_bytes(output, spec)
        window = min(self._config.window_steps, max(64, _WINDOW_BYTES // row_bytes))
        sink.session = Session(sequence, window, empty_frames(spec.input_size, spec.dtype))
        self._sinks[number] = sink
        sink.opened = inference_service_pb2.SessionOpened(weights_version=weights.version, window_steps=window)
        if not entry.end:  # else it travels with the first output
            self.send(sink.outgoing())
        return sink

    def _drop(self, number: int) -> None:
        sink = self._sinks.pop(number, None)
        if sink is not None:
            self._engine.cancel([sink.session.sequence])


class SessionSink:
    """Where one session's pieces become entries of the call."""

    __slots__ = ("_call", "_number", "_output", "_spec", "opened", "session")

    session: Session

    def __init__(self, call: SessionCall, number: int, spec: ModelSpec, output: OutputSpec) -> None:
        self._call = call
        self._number = number
        self._spec = spec
        self._output = output
        self.opened: inference_service_pb2.SessionOpened | None = None

    def outgoing(self) -> Outgoing:
        """A new entry of this session, with `opened` if that is still due."""
        opened, self.opened = self.opened, None
        return Outgoing(self._number, opened)

    def chunks(self, entry: inference_service_pb2.SessionRequest, now: float) -> list[Chunk]:
        frames = None
        if entry.HasField("frames"):
            frames = convert.frames(entry.frames, self._spec, "entries.frames")
        return self.session.chunks(
            frames, reset=entry.reset, end=entry.end, acknowledged=entry.acknowledged_steps, now=now
        )

    def deliver(self, sequence: Sequence, piece: Piece) -> None:
        out = self.outgoing()
        out.first_step = piece.first_step
        if piece.steps:
            rows = max(1, _ENTRY_BYTES // convert.output_bytes(self._output, self._spec))
            for start in range(0, piece.steps, rows):
                if start:
                    self._call.send(out)
                    out = Outgoing(self._number, first_step=piece.first_step + start)
                out.values = None if piece.values is None else piece.values[start : start + rows]
                out.labels = None if piece.labels is None else piece.labels[start : start + rows]
        elif piece.answers:
            out.values, out.labels = convert.empty_outputs(self._output, self._spec)
        elif piece.final_state is None and out.opened is None:
            return  # a bare reset: nothing to say
        out.steps = sequence.steps_done
        out.snapshot = piece.snapshot
        if piece.final_state is not None:
            self._call.ended(self._number)
            out.final_state = piece.final_state
            out.timing = (sequence.queue_seconds, sequence.compute_seconds)
        self._call.send(out)

    def fail(self, sequence: Sequence, error: ServerError) -> None:
        self._call.fail(self._number, error)
