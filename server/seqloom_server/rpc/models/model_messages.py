"""Converts models and their specifications to and from protobuf messages."""

from collections.abc import Mapping
from typing import TypeVar

from seqloom.v1 import model_service_pb2 as pb
from seqloom.v1 import tensor_pb2

from seqloom_server.engine.models.registry import ModelInfo
from seqloom_server.errors import invalid
from seqloom_server.nn.spec import Activation, Cell, DType, InvalidSpec, ModelSpec, Precision

_CELLS: "dict[pb.CellType, Cell]" = {pb.CELL_TYPE_ELMAN: "elman", pb.CELL_TYPE_GRU: "gru", pb.CELL_TYPE_LSTM: "lstm"}
_ACTIVATIONS: "dict[pb.Activation, Activation]" = {pb.ACTIVATION_TANH: "tanh", pb.ACTIVATION_RELU: "relu"}
_PRECISIONS: "dict[pb.Precision, Precision]" = {
    pb.PRECISION_FULL: "full",
    pb.PRECISION_TF32: "tf32",
    pb.PRECISION_BF16: "bf16",
    pb.PRECISION_INT8: "int8",
}
_SIZES = ("input_size", "hidden_size", "output_size", "num_layers", "conv_channels", "conv_width")
_DTYPES: "dict[tensor_pb2.DataType, DType]" = {
    tensor_pb2.DATA_TYPE_FLOAT32: "float32",
    tensor_pb2.DATA_TYPE_FLOAT64: "float64",
}


def model_spec(message: pb.ModelSpec) -> ModelSpec:
    """Returns a checked ModelSpec. Raises ServerError, which names the invalid field."""
    cell = _CELLS.get(message.cell)
    if cell is None:
        raise invalid("spec.cell", f"is {message.cell}: expected a CellType")
    activation = _ACTIVATIONS.get(message.activation or pb.ACTIVATION_TANH)
    if activation is None:
        raise invalid("spec.activation", f"is {message.activation}: expected an Activation")
    dtype = _DTYPES.get(message.data_type or tensor_pb2.DATA_TYPE_FLOAT32)
    if dtype is None:
        raise invalid("spec.data_type", f"is {message.data_type}: expected FLOAT32 or FLOAT64")
    precision = _PRECISIONS.get(message.precision or pb.PRECISION_FULL)
    if precision is None:
        raise invalid("spec.precision", f"is {message.precision}: expected a Precision")
    sizes = {name: getattr(message, name) for name in _SIZES}
    try:
        return ModelSpec(
            cell=cell,
            activation=activation,
            dtype=dtype,
            bidirectional=message.bidirectional,
            precision=precision,
            **sizes,
        )
    except InvalidSpec as error:
        raise invalid(f"spec.{error.field}", str(error).partition(": ")[2]) from None


def model_message(info: ModelInfo) -> pb.Model:
    """Returns the message of a served model."""
    message = pb.Model(name=info.name, weights_version=info.weights_version, parameter_count=info.parameter_count)
    message.spec.CopyFrom(spec_message(info.spec))
    return message


def spec_message(spec: ModelSpec) -> pb.ModelSpec:
    """Returns the message of a specification."""
    message = pb.ModelSpec(
        cell=_number(_CELLS, spec.cell),
        activation=_number(_ACTIVATIONS, spec.activation),
        data_type=_number(_DTYPES, spec.dtype),
        bidirectional=spec.bidirectional,
        precision=_number(_PRECISIONS, spec.precision),
    )
    for name in _SIZES:
        setattr(message, name, getattr(spec, name))
    return message


_Number = TypeVar("_Number")


def _number(names: Mapping[_Number, str], name: str) -> _Number:
    return next(number for number, known in names.items() if known == name)
