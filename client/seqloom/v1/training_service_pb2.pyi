from google.rpc import status_pb2 as _status_pb2
from seqloom.v1 import model_service_pb2 as _model_service_pb2
from seqloom.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LossKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOSS_KIND_UNSPECIFIED: _ClassVar[LossKind]
    LOSS_KIND_CROSS_ENTROPY: _ClassVar[LossKind]
    LOSS_KIND_MSE: _ClassVar[LossKind]
    LOSS_KIND_CTC: _ClassVar[LossKind]

class WithRespectTo(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WITH_RESPECT_TO_UNSPECIFIED: _ClassVar[WithRespectTo]
    WITH_RESPECT_TO_PARAMETERS: _ClassVar[WithRespectTo]
    WITH_RESPECT_TO_INPUTS: _ClassVar[WithRespectTo]
    WITH_RESPECT_TO_INITIAL_STATE: _ClassVar[WithRespectTo]
    WITH_RESPECT_TO_OUTPUTS: _ClassVar[WithRespectTo]
    WITH_RESPECT_TO_HIDDEN: _ClassVar[WithRespectTo]

class ParameterForm(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PARAMETER_FORM_UNSPECIFIED: _ClassVar[ParameterForm]
    PARAMETER_FORM_SMALLEST: _ClassVar[ParameterForm]
    PARAMETER_FORM_DENSE: _ClassVar[ParameterForm]
    PARAMETER_FORM_NORMS: _ClassVar[ParameterForm]

class GradientRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GRADIENT_ROLE_UNSPECIFIED: _ClassVar[GradientRole]
    GRADIENT_ROLE_PARAMETER: _ClassVar[GradientRole]
    GRADIENT_ROLE_FACTOR: _ClassVar[GradientRole]
    GRADIENT_ROLE_INPUTS: _ClassVar[GradientRole]
    GRADIENT_ROLE_OUTPUTS: _ClassVar[GradientRole]
    GRADIENT_ROLE_HIDDEN: _ClassVar[GradientRole]
    GRADIENT_ROLE_INITIAL_STATE: _ClassVar[GradientRole]
    GRADIENT_ROLE_FINAL_STATE: _ClassVar[GradientRole]

class OptimizerKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPTIMIZER_KIND_UNSPECIFIED: _ClassVar[OptimizerKind]
    OPTIMIZER_KIND_SGD: _ClassVar[OptimizerKind]
    OPTIMIZER_KIND_ADAM: _ClassVar[OptimizerKind]
    OPTIMIZER_KIND_ADAMW: _ClassVar[OptimizerKind]
LOSS_KIND_UNSPECIFIED: LossKind
LOSS_KIND_CROSS_ENTROPY: LossKind
LOSS_KIND_MSE: LossKind
LOSS_KIND_CTC: LossKind
WITH_RESPECT_TO_UNSPECIFIED: WithRespectTo
WITH_RESPECT_TO_PARAMETERS: WithRespectTo
WITH_RESPECT_TO_INPUTS: WithRespectTo
WITH_RESPECT_TO_INITIAL_STATE: WithRespectTo
WITH_RESPECT_TO_OUTPUTS: WithRespectTo
WITH_RESPECT_TO_HIDDEN: WithRespectTo
PARAMETER_FORM_UNSPECIFIED: ParameterForm
PARAMETER_FORM_SMALLEST: ParameterForm
PARAMETER_FORM_DENSE: ParameterForm
PARAMETER_FORM_NORMS: ParameterForm
GRADIENT_ROLE_UNSPECIFIED: GradientRole
GRADIENT_ROLE_PARAMETER: GradientRole
GRADIENT_ROLE_FACTOR: GradientRole
GRADIENT_ROLE_INPUTS: GradientRole
GRADIENT_ROLE_OUTPUTS: GradientRole
GRADIENT_ROLE_HIDDEN: GradientRole
GRADIENT_ROLE_INITIAL_STATE: GradientRole
GRADIENT_ROLE_FINAL_STATE: GradientRole
OPTIMIZER_KIND_UNSPECIFIED: OptimizerKind
OPTIMIZER_KIND_SGD: OptimizerKind
OPTIMIZER_KIND_ADAM: OptimizerKind
OPTIMIZER_KIND_ADAMW: OptimizerKind

class Examples(_message.Message):
    __slots__ = ("sequences", "targets", "target_lengths", "output_gradients", "initial_state", "final_state_gradient", "loss", "divisor")
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    TARGET_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    INITIAL_STATE_FIELD_NUMBER: _ClassVar[int]
    FINAL_STATE_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    DIVISOR_FIELD_NUMBER: _ClassVar[int]
    sequences: _tensor_pb2.SequenceBatch
    targets: _tensor_pb2.Tensor
    target_lengths: _containers.RepeatedScalarFieldContainer[int]
    output_gradients: _tensor_pb2.Tensor
    initial_state: _tensor_pb2.State
    final_state_gradient: _tensor_pb2.State
    loss: LossKind
    divisor: float
    def __init__(self, sequences: _Optional[_Union[_tensor_pb2.SequenceBatch, _Mapping]] = ..., targets: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., target_lengths: _Optional[_Iterable[int]] = ..., output_gradients: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., initial_state: _Optional[_Union[_tensor_pb2.State, _Mapping]] = ..., final_state_gradient: _Optional[_Union[_tensor_pb2.State, _Mapping]] = ..., loss: _Optional[_Union[LossKind, str]] = ..., divisor: _Optional[float] = ...) -> None: ...

class ComputeGradientsRequest(_message.Message):
    __slots__ = ("model", "weights_version", "examples", "with_respect_to", "parameter_form", "parameter_data_type", "parts")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    WITH_RESPECT_TO_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_FORM_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    weights_version: int
    examples: Examples
    with_respect_to: _containers.RepeatedScalarFieldContainer[WithRespectTo]
    parameter_form: ParameterForm
    parameter_data_type: _tensor_pb2.DataType
    parts: int
    def __init__(self, model: _Optional[str] = ..., weights_version: _Optional[int] = ..., examples: _Optional[_Union[Examples, _Mapping]] = ..., with_respect_to: _Optional[_Iterable[_Union[WithRespectTo, str]]] = ..., parameter_form: _Optional[_Union[ParameterForm, str]] = ..., parameter_data_type: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., parts: _Optional[int] = ...) -> None: ...

class ComputeGradientsResponse(_message.Message):
    __slots__ = ("summary", "data")
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    summary: GradientSummary
    data: bytes
    def __init__(self, summary: _Optional[_Union[GradientSummary, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class GradientSummary(_message.Message):
    __slots__ = ("loss", "losses", "weights_version", "timing", "tensors", "products", "norms")
    class NormsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    PRODUCTS_FIELD_NUMBER: _ClassVar[int]
    NORMS_FIELD_NUMBER: _ClassVar[int]
    loss: float
    losses: _containers.RepeatedScalarFieldContainer[float]
    weights_version: int
    timing: _tensor_pb2.Timing
    tensors: _containers.RepeatedCompositeFieldContainer[GradientTensor]
    products: _containers.RepeatedCompositeFieldContainer[GradientProduct]
    norms: _containers.ScalarMap[str, float]
    def __init__(self, loss: _Optional[float] = ..., losses: _Optional[_Iterable[float]] = ..., weights_version: _Optional[int] = ..., timing: _Optional[_Union[_tensor_pb2.Timing, _Mapping]] = ..., tensors: _Optional[_Iterable[_Union[GradientTensor, _Mapping]]] = ..., products: _Optional[_Iterable[_Union[GradientProduct, _Mapping]]] = ..., norms: _Optional[_Mapping[str, float]] = ...) -> None: ...

class GradientTensor(_message.Message):
    __slots__ = ("role", "name", "data_type", "shape")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    role: GradientRole
    name: str
    data_type: _tensor_pb2.DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, role: _Optional[_Union[GradientRole, str]] = ..., name: _Optional[str] = ..., data_type: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class GradientProduct(_message.Message):
    __slots__ = ("parameter", "left", "right", "sum_of_rows", "shape")
    PARAMETER_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    SUM_OF_ROWS_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    parameter: str
    left: int
    right: int
    sum_of_rows: bool
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, parameter: _Optional[str] = ..., left: _Optional[int] = ..., right: _Optional[int] = ..., sum_of_rows: bool = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Optimizer(_message.Message):
    __slots__ = ("kind", "learning_rate", "momentum", "beta1", "beta2", "epsilon", "weight_decay")
    KIND_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    BETA1_FIELD_NUMBER: _ClassVar[int]
    BETA2_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    kind: OptimizerKind
    learning_rate: float
    momentum: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    def __init__(self, kind: _Optional[_Union[OptimizerKind, str]] = ..., learning_rate: _Optional[float] = ..., momentum: _Optional[float] = ..., beta1: _Optional[float] = ..., beta2: _Optional[float] = ..., epsilon: _Optional[float] = ..., weight_decay: _Optional[float] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("id", "model", "spec", "weights_version", "optimizer", "clip_norm", "checkpoint_interval", "step", "durable_step", "loss", "accumulated_calls", "checkpoints", "calls_done", "calls_durable", "waiting_for", "broken")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    CLIP_NORM_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEP_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    ACCUMULATED_CALLS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    CALLS_DONE_FIELD_NUMBER: _ClassVar[int]
    CALLS_DURABLE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    BROKEN_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: str
    spec: _model_service_pb2.ModelSpec
    weights_version: int
    optimizer: Optimizer
    clip_norm: float
    checkpoint_interval: int
    step: int
    durable_step: int
    loss: float
    accumulated_calls: int
    checkpoints: _containers.RepeatedScalarFieldContainer[str]
    calls_done: int
    calls_durable: int
    waiting_for: str
    broken: str
    def __init__(self, id: _Optional[str] = ..., model: _Optional[str] = ..., spec: _Optional[_Union[_model_service_pb2.ModelSpec, _Mapping]] = ..., weights_version: _Optional[int] = ..., optimizer: _Optional[_Union[Optimizer, _Mapping]] = ..., clip_norm: _Optional[float] = ..., checkpoint_interval: _Optional[int] = ..., step: _Optional[int] = ..., durable_step: _Optional[int] = ..., loss: _Optional[float] = ..., accumulated_calls: _Optional[int] = ..., checkpoints: _Optional[_Iterable[str]] = ..., calls_done: _Optional[int] = ..., calls_durable: _Optional[int] = ..., waiting_for: _Optional[str] = ..., broken: _Optional[str] = ...) -> None: ...

class CreateRunRequest(_message.Message):
    __slots__ = ("model", "weights_version", "optimizer", "clip_norm", "checkpoint_interval", "request_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    CLIP_NORM_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    weights_version: int
    optimizer: Optimizer
    clip_norm: float
    checkpoint_interval: int
    request_id: str
    def __init__(self, model: _Optional[str] = ..., weights_version: _Optional[int] = ..., optimizer: _Optional[_Union[Optimizer, _Mapping]] = ..., clip_norm: _Optional[float] = ..., checkpoint_interval: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class CreateRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("run", "client")
    RUN_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    run: str
    client: str
    def __init__(self, run: _Optional[str] = ..., client: _Optional[str] = ...) -> None: ...

class GetRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    def __init__(self, runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ...) -> None: ...

class DeleteRunRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class DeleteRunResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CallId(_message.Message):
    __slots__ = ("run", "client", "number", "acknowledged", "step")
    RUN_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    run: str
    client: str
    number: int
    acknowledged: int
    step: int
    def __init__(self, run: _Optional[str] = ..., client: _Optional[str] = ..., number: _Optional[int] = ..., acknowledged: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...

class RunProgress(_message.Message):
    __slots__ = ("step", "durable_step", "calls_durable")
    STEP_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEP_FIELD_NUMBER: _ClassVar[int]
    CALLS_DURABLE_FIELD_NUMBER: _ClassVar[int]
    step: int
    durable_step: int
    calls_durable: int
    def __init__(self, step: _Optional[int] = ..., durable_step: _Optional[int] = ..., calls_durable: _Optional[int] = ...) -> None: ...

class ForwardBackwardRequest(_message.Message):
    __slots__ = ("call", "examples", "parts")
    CALL_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    call: CallId
    examples: Examples
    parts: int
    def __init__(self, call: _Optional[_Union[CallId, _Mapping]] = ..., examples: _Optional[_Union[Examples, _Mapping]] = ..., parts: _Optional[int] = ...) -> None: ...

class ForwardBackwardResponse(_message.Message):
    __slots__ = ("loss", "losses", "step", "progress", "timing")
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    loss: float
    losses: _containers.RepeatedScalarFieldContainer[float]
    step: int
    progress: RunProgress
    timing: _tensor_pb2.Timing
    def __init__(self, loss: _Optional[float] = ..., losses: _Optional[_Iterable[float]] = ..., step: _Optional[int] = ..., progress: _Optional[_Union[RunProgress, _Mapping]] = ..., timing: _Optional[_Union[_tensor_pb2.Timing, _Mapping]] = ...) -> None: ...

class OptimStepRequest(_message.Message):
    __slots__ = ("call", "learning_rate", "expected_step", "calls")
    class CallsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    CALL_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_STEP_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    call: CallId
    learning_rate: float
    expected_step: int
    calls: _containers.ScalarMap[str, int]
    def __init__(self, call: _Optional[_Union[CallId, _Mapping]] = ..., learning_rate: _Optional[float] = ..., expected_step: _Optional[int] = ..., calls: _Optional[_Mapping[str, int]] = ...) -> None: ...

class OptimStepResponse(_message.Message):
    __slots__ = ("step", "gradient_norm", "progress", "calls")
    class CallsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    STEP_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_NORM_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    step: int
    gradient_norm: float
    progress: RunProgress
    calls: _containers.ScalarMap[str, int]
    def __init__(self, step: _Optional[int] = ..., gradient_norm: _Optional[float] = ..., progress: _Optional[_Union[RunProgress, _Mapping]] = ..., calls: _Optional[_Mapping[str, int]] = ...) -> None: ...

class RunCallsRequest(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[RunCall]
    def __init__(self, entries: _Optional[_Iterable[_Union[RunCall, _Mapping]]] = ...) -> None: ...

class RunCall(_message.Message):
    __slots__ = ("entry", "cancel", "forward_backward", "optim_step")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    FORWARD_BACKWARD_FIELD_NUMBER: _ClassVar[int]
    OPTIM_STEP_FIELD_NUMBER: _ClassVar[int]
    entry: int
    cancel: bool
    forward_backward: ForwardBackwardRequest
    optim_step: OptimStepRequest
    def __init__(self, entry: _Optional[int] = ..., cancel: bool = ..., forward_backward: _Optional[_Union[ForwardBackwardRequest, _Mapping]] = ..., optim_step: _Optional[_Union[OptimStepRequest, _Mapping]] = ...) -> None: ...

class RunCallsResponse(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[RunCallReply]
    def __init__(self, entries: _Optional[_Iterable[_Union[RunCallReply, _Mapping]]] = ...) -> None: ...

class RunCallReply(_message.Message):
    __slots__ = ("entry", "error", "forward_backward", "optim_step")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    FORWARD_BACKWARD_FIELD_NUMBER: _ClassVar[int]
    OPTIM_STEP_FIELD_NUMBER: _ClassVar[int]
    entry: int
    error: _status_pb2.Status
    forward_backward: ForwardBackwardResponse
    optim_step: OptimStepResponse
    def __init__(self, entry: _Optional[int] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., forward_backward: _Optional[_Union[ForwardBackwardResponse, _Mapping]] = ..., optim_step: _Optional[_Union[OptimStepResponse, _Mapping]] = ...) -> None: ...

class SaveCheckpointRequest(_message.Message):
    __slots__ = ("call", "name")
    CALL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    call: CallId
    name: str
    def __init__(self, call: _Optional[_Union[CallId, _Mapping]] = ..., name: _Optional[str] = ...) -> None: ...

class SaveCheckpointResponse(_message.Message):
    __slots__ = ("progress",)
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    progress: RunProgress
    def __init__(self, progress: _Optional[_Union[RunProgress, _Mapping]] = ...) -> None: ...

class LoadCheckpointRequest(_message.Message):
    __slots__ = ("call", "name")
    CALL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    call: CallId
    name: str
    def __init__(self, call: _Optional[_Union[CallId, _Mapping]] = ..., name: _Optional[str] = ...) -> None: ...

class LoadCheckpointResponse(_message.Message):
    __slots__ = ("progress",)
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    progress: RunProgress
    def __init__(self, progress: _Optional[_Union[RunProgress, _Mapping]] = ...) -> None: ...

class PublishRunRequest(_message.Message):
    __slots__ = ("call",)
    CALL_FIELD_NUMBER: _ClassVar[int]
    call: CallId
    def __init__(self, call: _Optional[_Union[CallId, _Mapping]] = ...) -> None: ...

class PublishRunResponse(_message.Message):
    __slots__ = ("weights_version", "progress")
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    weights_version: int
    progress: RunProgress
    def __init__(self, weights_version: _Optional[int] = ..., progress: _Optional[_Union[RunProgress, _Mapping]] = ...) -> None: ...
