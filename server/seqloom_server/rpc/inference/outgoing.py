"""One outgoing entry of a session: its arrays are encoded when the message that carries it is."""

from dataclasses import dataclass

from google.rpc import status_pb2
from seqloom import wire
from seqloom.v1 import inference_service_pb2

from seqloom_server.engine.core.sequence import Array, StateArrays
from seqloom_server.rpc.calls import converters

LARGE_BYTES = 16 << 10  # of values; below it protobuf's copies are cheaper than more Python

_ENTRIES = inference_service_pb2.StreamInferResponse.ENTRIES_FIELD_NUMBER
_OUTPUTS = inference_service_pb2.SessionResponse.OUTPUTS_FIELD_NUMBER
_OUTPUTS_OUTPUTS = inference_service_pb2.SessionOutputs.OUTPUTS_FIELD_NUMBER


@dataclass(frozen=True, slots=True)
class Opened:
    """What the caller is told of a session or a group that is opened. fingerprint: of its weights."""

    weights_version: int
    window_steps: int
    fingerprint: bytes

    def fill(self, message: inference_service_pb2.SessionOpened) -> None:
        """Fills an empty message."""
        message.weights_version, message.window_steps = self.weights_version, self.window_steps
        message.fingerprint = self.fingerprint


@dataclass(slots=True)
class Outgoing:
    """One entry of a session.

    steps: the session's steps up to the snapshot or the end. parts: names of the state's parts. timing: (queue seconds,
    compute seconds). going_away: whether the caller should move with this snapshot. promised: bytes charged for its
    outputs. live: whether the session is.
    """

    number: int
    opened: Opened | None = None
    first_step: int = 0
    values: Array | None = None
    labels: Array | None = None
    steps: int = 0
    parts: tuple[str, ...] = ()
    snapshot: StateArrays | None = None
    final_state: StateArrays | None = None
    timing: tuple[float, float] = (0.0, 0.0)
    going_away: bool = False
    error: status_pb2.Status | None = None
    promised: int = 0
    live: bool = True

    @property
    def size(self) -> int:
        """The approximate bytes of the entry."""
        size = 64 if self.error is None else 4096
        if self.values is not None:
            size += self.values.nbytes + 24
        if self.labels is not None:
            size += self.labels.nbytes + 24
        for state in (self.snapshot, self.final_state):
            if state is not None:
                size += sum([part.nbytes + 24 for part in state])
        return size

    @property
    def large(self) -> bool:
        """Whether it is faster to write its values into the message's bytes without protobuf."""
        return self.values is not None and self.values.nbytes >= LARGE_BYTES

    def buffers(self) -> wire.Buffers:
        """Returns an entry with values as a field of a StreamInferResponse, without copying the values."""
        first = inference_service_pb2.SessionOutputs(first_step=self.first_step).SerializeToString()
        outputs = [first, *converters.outputs_field(_OUTPUTS_OUTPUTS, self.values, self.labels)]
        self.values = self.labels = None
        entry = inference_service_pb2.SessionResponse()
        self._fill(entry)
        return wire.message(_ENTRIES, [entry.SerializeToString(), *wire.message(_OUTPUTS, outputs)])

    def add_to(self, message: inference_service_pb2.StreamInferResponse) -> None:
        """Adds the entry to a message."""
        self._fill(message.entries.add())

    def _fill(self, entry: inference_service_pb2.SessionResponse) -> None:
        entry.session = self.number
        if self.opened is not None:
            self.opened.fill(entry.opened)
        if self.values is not None or self.labels is not None:
            entry.outputs.first_step = self.first_step
            converters.fill_outputs(entry.outputs.outputs, self.values, self.labels)
        if self.snapshot is not None:
            entry.snapshot.steps = self.steps
            converters.fill_state(entry.snapshot.state, self.parts, self.snapshot)
            if self.going_away:
                entry.going_away = True
        if self.final_state is not None:
            entry.ended.steps = self.steps
            converters.fill_state(entry.ended.final_state, self.parts, self.final_state)
            entry.ended.timing.queue_seconds, entry.ended.timing.compute_seconds = self.timing
        if self.error is not None:
            entry.error.CopyFrom(self.error)
