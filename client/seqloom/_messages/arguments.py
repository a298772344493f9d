"""Checks callers' arguments and converts them to protobuf messages, and converts replies to results."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from seqloom import tensors
from seqloom.errors import InvalidArgument
from seqloom.tensors import Array
from seqloom.types import (
    Activation,
    Cell,
    DType,
    Limits,
    ModelInfo,
    ModelSpec,
    Outputs,
    Precision,
    ServerInfo,
    State,
    TopK,
    TopKOutput,
    integer,
)
from seqloom.v1 import model_service_pb2, tensor_pb2

_KINDS = {
    "logits": tensor_pb2.OUTPUT_KIND_LOGITS,
    "probs": tensor_pb2.OUTPUT_KIND_PROBS,
    "log_probs": tensor_pb2.OUTPUT_KIND_LOG_PROBS,
    "labels": tensor_pb2.OUTPUT_KIND_LABELS,
    "hidden": tensor_pb2.OUTPUT_KIND_HIDDEN,
}
_CELLS: dict[Cell, model_service_pb2.CellType] = {
    "elman": model_service_pb2.CELL_TYPE_ELMAN,
    "gru": model_service_pb2.CELL_TYPE_GRU,
    "lstm": model_service_pb2.CELL_TYPE_LSTM,
}
_ACTIVATIONS: dict[Activation, model_service_pb2.Activation] = {
    "tanh": model_service_pb2.ACTIVATION_TANH,
    "relu": model_service_pb2.ACTIVATION_RELU,
}
_PRECISIONS: dict[Precision, model_service_pb2.Precision] = {
    "full": model_service_pb2.PRECISION_FULL,
    "tf32": model_service_pb2.PRECISION_TF32,
    "bf16": model_service_pb2.PRECISION_BF16,
    "int8": model_service_pb2.PRECISION_INT8,
}
_DTYPES: dict[DType, tensor_pb2.DataType] = {
    "float32": tensor_pb2.DATA_TYPE_FLOAT32,
    "float64": tensor_pb2.DATA_TYPE_FLOAT64,
}
Name = TypeVar("Name")

_SIZES = ("input_size", "hidden_size", "output_size", "num_layers", "conv_channels", "conv_width")
_INT32_MAX = 2**31 - 1


def text(value: object, name: str) -> str:
    """Returns a name. Raises InvalidArgument if it is not a printable string; the server checks the rest."""
    if not isinstance(value, str) or not value.isprintable():
        raise InvalidArgument(f"{name}: is {value!r}: expected a string of printable characters")
    return value


def version(weights_version: int | None) -> int:
    """Returns the required version of the weights, 0 for any. Raises InvalidArgument."""
    return 0 if weights_version is None else min(integer(weights_version, "weights_version"), 2**63 - 1)


def interval(snapshot_interval: int) -> int:
    """Returns the number of steps between snapshots, 0 for none. Raises InvalidArgument."""
    return min(integer(snapshot_interval, "snapshot_interval", least=0), _INT32_MAX)


def output_spec(outputs: Outputs) -> tensor_pb2.OutputSpec:
    """Returns the message of an output kind. Raises InvalidArgument."""
    if isinstance(outputs, TopK):
        return tensor_pb2.OutputSpec(kind=tensor_pb2.OUTPUT_KIND_TOP_K, top_k=min(outputs.k, _INT32_MAX))
    kind = _KINDS.get(outputs) if isinstance(outputs, str) else None
    if kind is None:
        raise InvalidArgument(f"outputs: is {outputs!r}: expected one of {', '.join(_KINDS)}, or seqloom.TopK(k)")
    return tensor_pb2.OutputSpec(kind=kind)


def frames(value: npt.ArrayLike, spec: ModelSpec, name: str) -> Array:
    """Returns frames [k, D] in the model's dtype; a copy only if dtype or layout differ. Raises InvalidArgument."""
    array = numbers(value, spec, name)
    if array.ndim != 2 or array.shape[1] != spec.input_size:
        raise InvalidArgument(f"{name}: has shape {list(array.shape)}: expected [steps, {spec.input_size}]")
    return array


def group_frames(value: npt.ArrayLike, spec: ModelSpec, width: int, name: str) -> Array:
    """Returns frames [w, k, D] of `width` streams, as frames() does. Raises InvalidArgument."""
    array = numbers(value, spec, name)
    if array.ndim != 3 or array.shape[0] != width or array.shape[2] != spec.input_size:
        raise InvalidArgument(
            f"{name}: has shape {list(array.shape)}: expected [{width}, steps, {spec.input_size}], frames of {width} "
            "streams"
        )
    return array


def stream_numbers(value: npt.ArrayLike | None, count: int) -> Array | None:
    """Returns numbers of a group's streams, int32 [w]; None for all. Raises InvalidArgument."""
    if value is None:
        return None
    array = np.asarray(value)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
        raise InvalidArgument(f"streams: is {value!r}: expected numbers of streams, at least one, or None for all")
    if array.min() < 0 or array.max() >= count:
        wrong = array[(array < 0) | (array >= count)][0]
        raise InvalidArgument(f"streams: has {wrong}: expected 0 to {count - 1}, as the group has {count} streams")
    times = np.bincount(array, minlength=count)
    if times.max() > 1:
        raise InvalidArgument(f"streams: has stream {times.argmax()} twice: expected each once")
    return array.astype(np.int32)


def sequences(xs: Iterable[npt.ArrayLike], spec: ModelSpec) -> list[Array]:
    """Returns N sequences [T_i, D] of at least one step each. Raises InvalidArgument."""
    try:
        arrays = [frames(x, spec, f"xs[{i}]") for i, x in enumerate(xs)]
    except TypeError:
        raise InvalidArgument(f"xs: is a {type(xs).__name__}: expected a list of arrays [steps, D]") from None
    if not arrays:
        raise InvalidArgument("xs: is empty: expected at least one sequence")
    for i, array in enumerate(arrays):
        if not len(array):
            raise InvalidArgument(f"xs[{i}]: has 0 steps: expected at least one")
    return arrays


def state(value: State | None, spec: ModelSpec, count: int) -> list[tensor_pb2.State | None]:
    """Returns the initial state of each of `count` sequences, or None for each. Raises InvalidArgument."""
    if value is None:
        return [None] * count
    parts = state_arrays(value, spec, count, "initial_state")
    return [
        tensor_pb2.State(**{name: tensors.encode(part[:, n : n + 1]) for name, part in parts.items()})
        for n in range(count)
    ]


def state_arrays(value: State, spec: ModelSpec, count: int, argument: str) -> dict[str, Array]:
    """Returns the parts of the state of `count` sequences by name, [rows, count, width]. Raises InvalidArgument."""
    if not isinstance(value, State):
        raise InvalidArgument(f"{argument}: is a {type(value).__name__}: expected seqloom.State")
    shapes, parts = spec.state_shapes(), {}
    for field in dataclasses.fields(State):
        name, part = field.name, getattr(value, field.name)
        if (part is None) != (name not in shapes):
            kind = f"conv_width {spec.conv_width}" if name == "inputs" else f"{spec.cell} cells"
            wrong, expected = ("is None", "an array") if part is None else ("is given", "None")
            raise InvalidArgument(f"{argument}.{name}: {wrong}: expected {expected} for a model with {kind}")
        if part is not None:
            parts[name] = numbers(part, spec, f"{argument}.{name}")
            shape = [shapes[name][0], count, shapes[name][1]]
            if list(parts[name].shape) != shape:
                raise InvalidArgument(f"{argument}.{name}: has shape {list(parts[name].shape)}: expected {shape}")
    return parts


def check_numbers(parts: dict[str, Array], spec: ModelSpec, argument: str) -> None:
    """Raises InvalidArgument if the parts of a state, by name, have numbers that the server refuses.

    For a state that is sent in parts, some of which it has before it sees the others.
    """
    for name, part in parts.items():
        if not (finite := np.isfinite(part)).all():
            index = np.argwhere(~finite)[0].tolist()
            raise InvalidArgument(f"{argument}.{name}: is {part[tuple(index)]} at {index}: expected finite numbers")
    hidden = parts["hidden"]
    if spec.precision == "int8" and np.abs(hidden).max() > 1:
        most = hidden.flat[np.abs(hidden).argmax()]
        raise InvalidArgument(f"{argument}.hidden: has {most}: expected -1 to 1, as the model's precision is int8")


def state_of(message: tensor_pb2.State) -> State:
    """The state that a message holds."""
    return State(**{field.name: tensors.decode(part) for field, part in message.ListFields()})


def joined_states(states: list[State]) -> State:
    """Joins the states of N sequences."""
    parts = {field.name: [getattr(each, field.name) for each in states] for field in dataclasses.fields(State)}
    return State(**{name: np.concatenate(part, 1) for name, part in parts.items() if part[0] is not None})


def joined_outputs(parts: list[tuple[Array | None, Array | None]]) -> Array | TopKOutput:
    """Joins the outputs of consecutive steps, (values, labels) of each part; a single part is not copied."""
    values, labels = parts[0] if len(parts) == 1 else (_joined([part[i] for part in parts]) for i in (0, 1))
    if values is not None and labels is not None:
        return TopKOutput(labels, values)
    array = values if labels is None else labels
    assert array is not None  # every part has one of them
    return array


def model_spec(spec: ModelSpec) -> model_service_pb2.ModelSpec:
    """Returns the message of a model specification. Raises InvalidArgument for sizes above 2**31 - 1."""
    if not isinstance(spec, ModelSpec):
        raise InvalidArgument(f"spec: is a {type(spec).__name__}: expected seqloom.ModelSpec")
    sizes = {name: getattr(spec, name) for name in _SIZES}
    for name, size in sizes.items():
        if size > _INT32_MAX:
            raise InvalidArgument(f"{name}: is {size}: expected at most {_INT32_MAX}")
    return model_service_pb2.ModelSpec(
        cell=_CELLS[spec.cell],
        activation=_ACTIVATIONS[spec.activation],
        data_type=_DTYPES[spec.dtype],
        bidirectional=spec.bidirectional,
        precision=_PRECISIONS[spec.precision],
        **sizes,
    )


def spec_of(message: model_service_pb2.ModelSpec) -> ModelSpec:
    """Returns the model specification of a message."""
    return ModelSpec(
        cell=_named(_CELLS, message.cell),
        activation=_named(_ACTIVATIONS, message.activation),
        dtype=_named(_DTYPES, message.data_type),
        bidirectional=message.bidirectional,
        precision=_named(_PRECISIONS, message.precision or model_service_pb2.PRECISION_FULL),
        **{name: getattr(message, name) for name in _SIZES},
    )


def model_info(message: model_service_pb2.Model) -> ModelInfo:
    """Returns the description of a model in a message."""
    spec = None if message.broken else spec_of(message.spec)
    return ModelInfo(message.name, spec, message.weights_version, message.parameter_count, message.broken)


def served_info(message: model_service_pb2.Model) -> ModelInfo:
    """Returns the description of a model in a message. Raises InvalidArgument if the model is broken."""
    info = model_info(message)
    _ = info.spec
    return info


def server_info(message: model_service_pb2.GetServerInfoResponse) -> ServerInfo:
    """Returns the description of a server in a message."""
    limits = {field.name: getattr(message.limits, field.name) for field in message.limits.DESCRIPTOR.fields}
    return ServerInfo(message.version, message.device, Limits(**limits))


def numbers(value: npt.ArrayLike, spec: ModelSpec, name: str) -> Array:
    """Returns an array of the model's dtype; a copy only if dtype or layout differ. Raises InvalidArgument."""
    if type(value) is np.ndarray and value.dtype == spec.dtype and value.flags.c_contiguous:
        return value  # the usual case of a stream's chunks
    try:
        array = np.asarray(value)
    except Exception as error:  # __array__ of other libraries' types may raise anything
        raise InvalidArgument(f"{name}: is a {type(value).__name__}: expected an array: {error}") from None
    if array.dtype == bool or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise InvalidArgument(f"{name}: has dtype {array.dtype}: expected numbers that fit {spec.dtype}")
    with np.errstate(over="ignore"):  # the server refuses the resulting infinity
        return np.ascontiguousarray(array, spec.dtype) if array.ndim else array


def _joined(arrays: list[Array | None]) -> Array | None:
    present = [array for array in arrays if array is not None]
    return np.concatenate(present) if present else None


def _named(numbers: Mapping[Name, int], number: int) -> Name:
    return {value: name for name, value in numbers.items()}[number]
