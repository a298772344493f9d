from google.rpc import status_pb2 as _status_pb2
from seqloom.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InferRequest(_message.Message):
    __slots__ = ("model", "sequences", "output", "initial_state", "weights_version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    INITIAL_STATE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    sequences: _tensor_pb2.SequenceBatch
    output: _tensor_pb2.OutputSpec
    initial_state: _tensor_pb2.State
    weights_version: int
    def __init__(self, model: _Optional[str] = ..., sequences: _Optional[_Union[_tensor_pb2.SequenceBatch, _Mapping]] = ..., output: _Optional[_Union[_tensor_pb2.OutputSpec, _Mapping]] = ..., initial_state: _Optional[_Union[_tensor_pb2.State, _Mapping]] = ..., weights_version: _Optional[int] = ...) -> None: ...

class InferResponse(_message.Message):
    __slots__ = ("outputs", "lengths", "final_state", "weights_version", "timing")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    FINAL_STATE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    outputs: _tensor_pb2.Outputs
    lengths: _containers.RepeatedScalarFieldContainer[int]
    final_state: _tensor_pb2.State
    weights_version: int
    timing: _tensor_pb2.Timing
    def __init__(self, outputs: _Optional[_Union[_tensor_pb2.Outputs, _Mapping]] = ..., lengths: _Optional[_Iterable[int]] = ..., final_state: _Optional[_Union[_tensor_pb2.State, _Mapping]] = ..., weights_version: _Optional[int] = ..., timing: _Optional[_Union[_tensor_pb2.Timing, _Mapping]] = ...) -> None: ...

class StreamInferRequest(_message.Message):
    __slots__ = ("entries", "groups")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[SessionRequest]
    groups: _containers.RepeatedCompositeFieldContainer[GroupRequest]
    def __init__(self, entries: _Optional[_Iterable[_Union[SessionRequest, _Mapping]]] = ..., groups: _Optional[_Iterable[_Union[GroupRequest, _Mapping]]] = ...) -> None: ...

class SessionRequest(_message.Message):
    __slots__ = ("session", "open", "reset", "frames", "end", "cancel", "acknowledged_steps", "snapshot")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_STEPS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    session: int
    open: OpenSession
    reset: bool
    frames: _tensor_pb2.Tensor
    end: bool
    cancel: bool
    acknowledged_steps: int
    snapshot: bool
    def __init__(self, session: _Optional[int] = ..., open: _Optional[_Union[OpenSession, _Mapping]] = ..., reset: bool = ..., frames: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., end: bool = ..., cancel: bool = ..., acknowledged_steps: _Optional[int] = ..., snapshot: bool = ...) -> None: ...

class Resumption(_message.Message):
    __slots__ = ("steps", "fingerprint", "stream_steps")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    STREAM_STEPS_FIELD_NUMBER: _ClassVar[int]
    steps: int
    fingerprint: bytes
    stream_steps: _tensor_pb2.Tensor
    def __init__(self, steps: _Optional[int] = ..., fingerprint: _Optional[bytes] = ..., stream_steps: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class OpenSession(_message.Message):
    __slots__ = ("model", "output", "initial_state", "weights_version", "snapshot_interval_steps", "timeout_seconds", "whole_sequence", "total_steps", "steps_per_second", "resumed")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    INITIAL_STATE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_INTERVAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WHOLE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    STEPS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    model: str
    output: _tensor_pb2.OutputSpec
    initial_state: _tensor_pb2.State
    weights_version: int
    snapshot_interval_steps: int
    timeout_seconds: float
    whole_sequence: bool
    total_steps: int
    steps_per_second: float
    resumed: Resumption
    def __init__(self, model: _Optional[str] = ..., output: _Optional[_Union[_tensor_pb2.OutputSpec, _Mapping]] = ..., initial_state: _Optional[_Union[_tensor_pb2.State, _Mapping]] = ..., weights_version: _Optional[int] = ..., snapshot_interval_steps: _Optional[int] = ..., timeout_seconds: _Optional[float] = ..., whole_sequence: bool = ..., total_steps: _Optional[int] = ..., steps_per_second: _Optional[float] = ..., resumed: _Optional[_Union[Resumption, _Mapping]] = ...) -> None: ...

class GroupRequest(_message.Message):
    __slots__ = ("group", "open", "failures", "more", "streams", "frames", "place", "reset", "set", "get", "end", "cancel", "acknowledged_steps")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    SET_FIELD_NUMBER: _ClassVar[int]
    GET_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_STEPS_FIELD_NUMBER: _ClassVar[int]
    group: int
    open: OpenGroup
    failures: int
    more: bool
    streams: _tensor_pb2.Tensor
    frames: _tensor_pb2.Tensor
    place: GroupBlock
    reset: StreamSet
    set: StreamStates
    get: StreamSet
    end: bool
    cancel: bool
    acknowledged_steps: int
    def __init__(self, group: _Optional[int] = ..., open: _Optional[_Union[OpenGroup, _Mapping]] = ..., failures: _Optional[int] = ..., more: bool = ..., streams: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., frames: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., place: _Optional[_Union[GroupBlock, _Mapping]] = ..., reset: _Optional[_Union[StreamSet, _Mapping]] = ..., set: _Optional[_Union[StreamStates, _Mapping]] = ..., get: _Optional[_Union[StreamSet, _Mapping]] = ..., end: bool = ..., cancel: bool = ..., acknowledged_steps: _Optional[int] = ...) -> None: ...

class OpenGroup(_message.Message):
    __slots__ = ("model", "streams", "output", "initial_state", "weights_version", "snapshot_interval_steps", "timeout_seconds", "steps_per_second", "resumed")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    INITIAL_STATE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_INTERVAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STEPS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    model: str
    streams: int
    output: _tensor_pb2.OutputSpec
    initial_state: _tensor_pb2.State
    weights_version: int
    snapshot_interval_steps: int
    timeout_seconds: float
    steps_per_second: float
    resumed: Resumption
    def __init__(self, model: _Optional[str] = ..., streams: _Optional[int] = ..., output: _Optional[_Union[_tensor_pb2.OutputSpec, _Mapping]] = ..., initial_state: _Optional[_Union[_tensor_pb2.State, _Mapping]] = ..., weights_version: _Optional[int] = ..., snapshot_interval_steps: _Optional[int] = ..., timeout_seconds: _Optional[float] = ..., steps_per_second: _Optional[float] = ..., resumed: _Optional[_Union[Resumption, _Mapping]] = ...) -> None: ...

class StreamSet(_message.Message):
    __slots__ = ("all", "streams")
    ALL_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    all: bool
    streams: _tensor_pb2.Tensor
    def __init__(self, all: bool = ..., streams: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class StreamStates(_message.Message):
    __slots__ = ("streams", "state")
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    streams: StreamSet
    state: _tensor_pb2.State
    def __init__(self, streams: _Optional[_Union[StreamSet, _Mapping]] = ..., state: _Optional[_Union[_tensor_pb2.State, _Mapping]] = ...) -> None: ...

class GroupBlock(_message.Message):
    __slots__ = ("stream", "step", "streams", "steps")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    stream: int
    step: int
    streams: int
    steps: int
    def __init__(self, stream: _Optional[int] = ..., step: _Optional[int] = ..., streams: _Optional[int] = ..., steps: _Optional[int] = ...) -> None: ...

class StreamInferResponse(_message.Message):
    __slots__ = ("entries", "groups")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[SessionResponse]
    groups: _containers.RepeatedCompositeFieldContainer[GroupResponse]
    def __init__(self, entries: _Optional[_Iterable[_Union[SessionResponse, _Mapping]]] = ..., groups: _Optional[_Iterable[_Union[GroupResponse, _Mapping]]] = ...) -> None: ...

class GroupResponse(_message.Message):
    __slots__ = ("group", "opened", "outputs", "states", "snapshot", "ended", "failure", "error", "done", "going_away")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    GOING_AWAY_FIELD_NUMBER: _ClassVar[int]
    group: int
    opened: SessionOpened
    outputs: GroupOutputs
    states: StateBlock
    snapshot: GroupSnapshot
    ended: GroupEnded
    failure: GroupFailure
    error: _status_pb2.Status
    done: bool
    going_away: bool
    def __init__(self, group: _Optional[int] = ..., opened: _Optional[_Union[SessionOpened, _Mapping]] = ..., outputs: _Optional[_Union[GroupOutputs, _Mapping]] = ..., states: _Optional[_Union[StateBlock, _Mapping]] = ..., snapshot: _Optional[_Union[GroupSnapshot, _Mapping]] = ..., ended: _Optional[_Union[GroupEnded, _Mapping]] = ..., failure: _Optional[_Union[GroupFailure, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., done: bool = ..., going_away: bool = ...) -> None: ...

class GroupOutputs(_message.Message):
    __slots__ = ("place", "outputs", "first_step", "first_steps")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEPS_FIELD_NUMBER: _ClassVar[int]
    place: GroupBlock
    outputs: _tensor_pb2.Outputs
    first_step: int
    first_steps: _tensor_pb2.Tensor
    def __init__(self, place: _Optional[_Union[GroupBlock, _Mapping]] = ..., outputs: _Optional[_Union[_tensor_pb2.Outputs, _Mapping]] = ..., first_step: _Optional[int] = ..., first_steps: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class StateBlock(_message.Message):
    __slots__ = ("stream", "state")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    stream: int
    state: _tensor_pb2.State
    def __init__(self, stream: _Optional[int] = ..., state: _Optional[_Union[_tensor_pb2.State, _Mapping]] = ...) -> None: ...

class GroupSnapshot(_message.Message):
    __slots__ = ("steps", "states")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    steps: _tensor_pb2.Tensor
    states: StateBlock
    def __init__(self, steps: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., states: _Optional[_Union[StateBlock, _Mapping]] = ...) -> None: ...

class GroupEnded(_message.Message):
    __slots__ = ("states", "timing")
    STATES_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    states: StateBlock
    timing: _tensor_pb2.Timing
    def __init__(self, states: _Optional[_Union[StateBlock, _Mapping]] = ..., timing: _Optional[_Union[_tensor_pb2.Timing, _Mapping]] = ...) -> None: ...

class GroupFailure(_message.Message):
    __slots__ = ("number", "error")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    number: int
    error: _status_pb2.Status
    def __init__(self, number: _Optional[int] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("session", "opened", "outputs", "snapshot", "ended", "error", "going_away")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    GOING_AWAY_FIELD_NUMBER: _ClassVar[int]
    session: int
    opened: SessionOpened
    outputs: SessionOutputs
    snapshot: SessionSnapshot
    ended: SessionEnded
    error: _status_pb2.Status
    going_away: bool
    def __init__(self, session: _Optional[int] = ..., opened: _Optional[_Union[SessionOpened, _Mapping]] = ..., outputs: _Optional[_Union[SessionOutputs, _Mapping]] = ..., snapshot: _Optional[_Union[SessionSnapshot, _Mapping]] = ..., ended: _Optional[_Union[SessionEnded, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., going_away: bool = ...) -> None: ...

class SessionOpened(_message.Message):
    __slots__ = ("weights_version", "window_steps", "fingerprint")
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    WINDOW_STEPS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    weights_version: int
    window_steps: int
    fingerprint: bytes
    def __init__(self, weights_version: _Optional[int] = ..., window_steps: _Optional[int] = ..., fingerprint: _Optional[bytes] = ...) -> None: ...

class SessionOutputs(_message.Message):
    __slots__ = ("first_step", "outputs")
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    first_step: int
    outputs: _tensor_pb2.Outputs
    def __init__(self, first_step: _Optional[int] = ..., outputs: _Optional[_Union[_tensor_pb2.Outputs, _Mapping]] = ...) -> None: ...

class SessionSnapshot(_message.Message):
    __slots__ = ("steps", "state")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    steps: int
    state: _tensor_pb2.State
    def __init__(self, steps: _Optional[int] = ..., state: _Optional[_Union[_tensor_pb2.State, _Mapping]] = ...) -> None: ...

class SessionEnded(_message.Message):
    __slots__ = ("steps", "final_state", "timing")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    FINAL_STATE_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    steps: int
    final_state: _tensor_pb2.State
    timing: _tensor_pb2.Timing
    def __init__(self, steps: _Optional[int] = ..., final_state: _Optional[_Union[_tensor_pb2.State, _Mapping]] = ..., timing: _Optional[_Union[_tensor_pb2.Timing, _Mapping]] = ...) -> None: ...
