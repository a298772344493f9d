"""One outgoing entry of a stream group: its arrays are encoded when the message that carries it is."""

from dataclasses import dataclass

from google.rpc import status_pb2
from seqloom import tensors, wire
from seqloom.v1 import inference_service_pb2

from seqloom_server.engine.core.sequence import Array, StateArrays
from seqloom_server.engine.core.stream_group import Index
from seqloom_server.rpc.calls import converters
from seqloom_server.rpc.inference.outgoing import LARGE_BYTES, Opened

_GROUPS = inference_service_pb2.StreamInferResponse.GROUPS_FIELD_NUMBER
_OUTPUTS = inference_service_pb2.GroupResponse.OUTPUTS_FIELD_NUMBER
_OUTPUTS_OUTPUTS = inference_service_pb2.GroupOutputs.OUTPUTS_FIELD_NUMBER


@dataclass(slots=True)
class Block:
    """A block of a call's outputs.

    place: (stream, step, streams, steps): the position of its first row, its size; None for all of the call. values,
    labels: a row for each step of the first stream, then of the next. first_step: that of every stream, or int64 [w];
    in the call's first block.
    """

    place: tuple[int, int, int, int] | None
    values: Array | None
    labels: Array | None
    first_step: int | Index = 0

    def fill(self, message: inference_service_pb2.GroupOutputs) -> None:
        """Fills an empty message, but for the outputs themselves."""
        if self.place is not None:
            place = message.place
            place.stream, place.step, place.streams, place.steps = self.place
        if isinstance(self.first_step, int):
            message.first_step = self.first_step
        else:
            tensors.encode_into(self.first_step, message.first_steps)


@dataclass(slots=True)
class StateBlock:
    """States of streams, [rows, w, width] per part, from a position on among those that are sent."""

    stream: int
    states: StateArrays
    parts: tuple[str, ...]  # their names

    def fill(self, message: inference_service_pb2.StateBlock) -> None:
        """Fills an empty message."""
        message.stream = self.stream
        converters.fill_state(message.state, self.parts, self.states)


@dataclass(slots=True)
class GroupOutgoing:
    """One entry of a group.

    states: what they are: "states", "snapshot" or "ended", and a block of them.
    steps: of each stream, [n], in a snapshot's first block. timing: (queue seconds, compute seconds), in the first
    block of the end. failure: its number and status. going_away: as of Outgoing, in a snapshot's last block. promised:
    bytes charged for what is in it.
    """

    number: int
    opened: Opened | None = None
    outputs: Block | None = None
    states: tuple[str, StateBlock] | None = None
    steps: Index | None = None
    timing: tuple[float, float] | None = None
    done: bool = False
    going_away: bool = False
    failure: tuple[int, status_pb2.Status] | None = None
    error: status_pb2.Status | None = None
    promised: int = 0
    live: bool = True

    @property
    def size(self) -> int:
        """The approximate bytes of the entry."""
        size = 64 if self.error is None and self.failure is None else 4096
        arrays: list[Array | None] = [self.steps]
        if self.outputs is not None:
            arrays += [self.outputs.values, self.outputs.labels]
            if not isinstance(self.outputs.first_step, int):
                arrays.append(self.outputs.first_step)
        if self.states is not None:
            arrays += self.states[1].states
        return size + sum([array.nbytes + 24 for array in arrays if array is not None])

    @property
    def large(self) -> bool:
        """Whether it is faster to write its values into the message's bytes without protobuf."""
        values = None if self.outputs is None else self.outputs.values
        return values is not None and values.nbytes >= LARGE_BYTES

    def buffers(self) -> wire.Buffers:
        """Returns an entry with values as a field of a StreamInferResponse, without copying the values."""
        block, self.outputs = self.outputs, None
        assert block is not None
        message = inference_service_pb2.GroupOutputs()
        block.fill(message)
        outputs = [
            message.SerializeToString(),
            *converters.outputs_field(_OUTPUTS_OUTPUTS, block.values, block.labels),
        ]
        entry = inference_service_pb2.GroupResponse()
        self._fill(entry)
        return wire.message(_GROUPS, [entry.SerializeToString(), *wire.message(_OUTPUTS, outputs)])

    def add_to(self, message: inference_service_pb2.StreamInferResponse) -> None:
        """Adds the entry to a message."""
        self._fill(message.groups.add())

    def _fill(self, entry: inference_service_pb2.GroupResponse) -> None:
        entry.group = self.number
        if self.done:
            entry.done = True
        if self.going_away:
            entry.going_away = True
        if self.opened is not None:
            self.opened.fill(entry.opened)
        if self.outputs is not None:
            self.outputs.fill(entry.outputs)
            converters.fill_outputs(entry.outputs.outputs, self.outputs.values, self.outputs.labels)
        if self.states is not None:
            kind, block = self.states
            block.fill(entry.states if kind == "states" else getattr(entry, kind).states)
        if self.steps is not None:
            tensors.encode_into(self.steps, entry.snapshot.steps)
        if self.timing is not None:
            entry.ended.timing.queue_seconds, entry.ended.timing.compute_seconds = self.timing
        if self.failure is not None:
            entry.failure.number = self.failure[0]
            entry.failure.error.CopyFrom(self.failure[1])
        if self.error is not None:
            entry.error.CopyFrom(self.error)
