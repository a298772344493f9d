from seqloom.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CellType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CELL_TYPE_UNSPECIFIED: _ClassVar[CellType]
    CELL_TYPE_ELMAN: _ClassVar[CellType]
    CELL_TYPE_GRU: _ClassVar[CellType]
    CELL_TYPE_LSTM: _ClassVar[CellType]

class Activation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTIVATION_UNSPECIFIED: _ClassVar[Activation]
    ACTIVATION_TANH: _ClassVar[Activation]
    ACTIVATION_RELU: _ClassVar[Activation]

class Precision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRECISION_UNSPECIFIED: _ClassVar[Precision]
    PRECISION_FULL: _ClassVar[Precision]
    PRECISION_TF32: _ClassVar[Precision]
    PRECISION_BF16: _ClassVar[Precision]
    PRECISION_INT8: _ClassVar[Precision]
CELL_TYPE_UNSPECIFIED: CellType
CELL_TYPE_ELMAN: CellType
CELL_TYPE_GRU: CellType
CELL_TYPE_LSTM: CellType
ACTIVATION_UNSPECIFIED: Activation
ACTIVATION_TANH: Activation
ACTIVATION_RELU: Activation
PRECISION_UNSPECIFIED: Precision
PRECISION_FULL: Precision
PRECISION_TF32: Precision
PRECISION_BF16: Precision
PRECISION_INT8: Precision

class ModelSpec(_message.Message):
    __slots__ = ("cell", "activation", "input_size", "hidden_size", "output_size", "num_layers", "data_type", "conv_channels", "conv_width", "bidirectional", "precision")
    CELL_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    INPUT_SIZE_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    CONV_CHANNELS_FIELD_NUMBER: _ClassVar[int]
    CONV_WIDTH_FIELD_NUMBER: _ClassVar[int]
    BIDIRECTIONAL_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    cell: CellType
    activation: Activation
    input_size: int
    hidden_size: int
    output_size: int
    num_layers: int
    data_type: _tensor_pb2.DataType
    conv_channels: int
    conv_width: int
    bidirectional: bool
    precision: Precision
    def __init__(self, cell: _Optional[_Union[CellType, str]] = ..., activation: _Optional[_Union[Activation, str]] = ..., input_size: _Optional[int] = ..., hidden_size: _Optional[int] = ..., output_size: _Optional[int] = ..., num_layers: _Optional[int] = ..., data_type: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., conv_channels: _Optional[int] = ..., conv_width: _Optional[int] = ..., bidirectional: bool = ..., precision: _Optional[_Union[Precision, str]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "spec", "weights_version", "parameter_count", "broken")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_COUNT_FIELD_NUMBER: _ClassVar[int]
    BROKEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    spec: ModelSpec
    weights_version: int
    parameter_count: int
    broken: str
    def __init__(self, name: _Optional[str] = ..., spec: _Optional[_Union[ModelSpec, _Mapping]] = ..., weights_version: _Optional[int] = ..., parameter_count: _Optional[int] = ..., broken: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class CreateModelRequest(_message.Message):
    __slots__ = ("name", "spec", "seed")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    name: str
    spec: ModelSpec
    seed: int
    def __init__(self, name: _Optional[str] = ..., spec: _Optional[_Union[ModelSpec, _Mapping]] = ..., seed: _Optional[int] = ...) -> None: ...

class CreateModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ImportModelRequest(_message.Message):
    __slots__ = ("name", "config", "weights", "parts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    config: bytes
    weights: bytes
    parts: int
    def __init__(self, name: _Optional[str] = ..., config: _Optional[bytes] = ..., weights: _Optional[bytes] = ..., parts: _Optional[int] = ...) -> None: ...

class ImportModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class ExportModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ExportModelResponse(_message.Message):
    __slots__ = ("config", "weights")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    config: bytes
    weights: bytes
    def __init__(self, config: _Optional[bytes] = ..., weights: _Optional[bytes] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "device", "limits")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    version: str
    device: str
    limits: Limits
    def __init__(self, version: _Optional[str] = ..., device: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_sequences_per_request", "max_steps_per_sequence", "max_message_bytes", "max_stream_message_bytes", "window_steps", "max_sessions", "max_batch_sequences", "max_batch_steps", "max_training_bytes", "max_training_steps")
    MAX_SEQUENCES_PER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_PER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAM_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WINDOW_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_TRAINING_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_TRAINING_STEPS_FIELD_NUMBER: _ClassVar[int]
    max_sequences_per_request: int
    max_steps_per_sequence: int
    max_message_bytes: int
    max_stream_message_bytes: int
    window_steps: int
    max_sessions: int
    max_batch_sequences: int
    max_batch_steps: int
    max_training_bytes: int
    max_training_steps: int
    def __init__(self, max_sequences_per_request: _Optional[int] = ..., max_steps_per_sequence: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_stream_message_bytes: _Optional[int] = ..., window_steps: _Optional[int] = ..., max_sessions: _Optional[int] = ..., max_batch_sequences: _Optional[int] = ..., max_batch_steps: _Optional[int] = ..., max_training_bytes: _Optional[int] = ..., max_training_steps: _Optional[int] = ...) -> None: ...
