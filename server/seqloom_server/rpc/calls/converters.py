"""Converts protobuf messages to the engine's arrays and specs, checking every field, and results back to messages.

Errors name the field's path, what was sent and what is expected.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
from seqloom import tensors, wire
from seqloom.v1 import tensor_pb2

from seqloom_server.config import ServerConfig
from seqloom_server.engine.core.sequence import Array, OutputSpec, StateArrays
from seqloom_server.errors import invalid, over_limit
from seqloom_server.nn.spec import ModelSpec, OutputKind

_KINDS: dict[int, OutputKind] = {
    tensor_pb2.OUTPUT_KIND_UNSPECIFIED: "logits",
    tensor_pb2.OUTPUT_KIND_LOGITS: "logits",
    tensor_pb2.OUTPUT_KIND_PROBS: "probs",
    tensor_pb2.OUTPUT_KIND_LOG_PROBS: "log_probs",
    tensor_pb2.OUTPUT_KIND_LABELS: "labels",
    tensor_pb2.OUTPUT_KIND_HIDDEN: "hidden",
    tensor_pb2.OUTPUT_KIND_TOP_K: "top_k",
}
_CLASS_KINDS = ("probs", "log_probs", "labels", "top_k")  # outputs that compare classes
_MODEL_DTYPES = {name: np.dtype(name) for name in ("float32", "float64")}
_SMALL_BYTES = 128 << 10
_STATE_PARTS = ("hidden", "cell", "inputs")
_MODELS_WITHOUT = {"cell": "{cell}", "inputs": "a model without a convolution over earlier inputs"}
_OUTPUT_SPECS = {kind: OutputSpec(kind) for kind in _KINDS.values()}


def output_spec(message: tensor_pb2.OutputSpec, spec: ModelSpec, field: str) -> OutputSpec:
    """Returns a checked OutputSpec. Raises ServerError for a kind or a top_k that the model does not have."""
    kind = _KINDS.get(message.kind)
    if kind is None:
        raise invalid(f"{field}.kind", f"is {message.kind}: expected an OutputKind")
    if spec.output_size == 1 and kind in _CLASS_KINDS:
        raise invalid(
            f"{field}.kind",
            f"is {kind}: the model has one output, whose softmax is always 1 and whose label is always 0: expected "
            "logits or hidden",
        )
    if kind != "top_k":
        return _OUTPUT_SPECS[kind]
    if not 1 <= message.top_k <= spec.output_size:
        raise invalid(f"{field}.top_k", f"is {message.top_k}: expected 1 to {spec.output_size}")
    return OutputSpec(kind, message.top_k)


def array(message: tensor_pb2.Tensor, dtype: str, field: str, place: Callable[[list[int]], str] = str) -> Array:
    """Returns a finite array of the model's dtype, a view on the message. place: says in words where an index is.

    Raises ServerError.
    """
    data = message.data
    try:
        decoded = tensors.from_bytes(message.data_type, tuple(message.shape), data)
    except tensors.MalformedTensor as error:
        raise invalid(field, str(error)) from None
    if decoded.dtype != _MODEL_DTYPES[dtype]:
        raise invalid(field, f"is {decoded.dtype.name}: expected {dtype}, the model's data type")
    if _may_be_non_finite(data, decoded) and not np.isfinite(decoded).all():
        index = np.argwhere(~np.isfinite(decoded))[0].tolist()
        raise invalid(field, f"is {decoded[tuple(index)]} at {place(index)}: expected finite numbers")
    return decoded


def _may_be_non_finite(data: bytes, decoded: Array) -> bool:
    """Returns whether a number may be infinite or NaN: a cheap test before numpy tests each number.

    numpy releases the interpreter lock, and then waits for the device thread to release it: only worth it for large
    arrays. In little-endian IEEE 754 the highest byte of an infinite number or NaN is 0x7f or 0xff.
    """
    if len(data) <= _SMALL_BYTES:
        width = len(data) // max(1, decoded.size)  # on the wire
        highest = data[width - 1 :: width] if width else b""
        return b"\x7f" in highest or b"\xff" in highest
    flat = decoded.reshape(-1)
    with np.errstate(over="ignore"):
        return not math.isfinite(np.dot(flat, flat))


def frames(message: tensor_pb2.Tensor, spec: ModelSpec, field: str) -> Array:
    """Returns frames, [k, D]; k may be 0."""
    rows = array(message, spec.dtype, field)
    if rows.ndim != 2 or rows.shape[1] != spec.input_size:
        raise invalid(field, f"has shape {list(rows.shape)}: expected [steps, {spec.input_size}]")
    return rows


def sequences(message: tensor_pb2.SequenceBatch, spec: ModelSpec, max_sequences: int, max_steps: int) -> list[Array]:
    """Returns N sequences [T_i, D], views on the message's rows."""
    rows = frames(message.rows, spec, "sequences.rows")
    lengths = checked_lengths(message.lengths, len(rows), max_sequences, max_steps, "sequences")
    return split(rows, lengths)


def checked_lengths(lengths: Iterable[int], rows: int, max_sequences: int, max_steps: int, field: str) -> list[int]:
    """Returns the lengths of N sequences of `rows` rows in total."""
    lengths, field = list(lengths), f"{field}.lengths"
    if not lengths:
        raise invalid(field, "is empty: expected at least one sequence")
    if len(lengths) > max_sequences:
        raise over_limit(field, f"has {len(lengths)} sequences: expected at most {max_sequences}")
    if min(lengths) < 1:
        raise invalid(field, f"has {min(lengths)} at {lengths.index(min(lengths))}: expected at least 1")
    if max(lengths) > max_steps:
        raise over_limit(field, f"has {max(lengths)} steps: expected at most {max_steps}")
    if sum(lengths) != rows:
        raise invalid(field, f"add up to {sum(lengths)}: expected {rows}, the number of rows")
    return lengths


def split(rows: Array, lengths: list[int]) -> list[Array]:
    """Splits concatenated rows into one view for each length."""
    if len(lengths) == 1:
        return [rows[: lengths[0]]]
    ends = np.cumsum(lengths).tolist()
    return [rows[end - length : end] for length, end in zip(lengths, ends, strict=True)]


def state(message: tensor_pb2.State, spec: ModelSpec, count: int, field: str) -> StateArrays:
    """Returns the state of `count` sequences: [rows, count, width] per part of spec.state_shapes()."""
    shapes = spec.state_shapes()
    parts = []
    for part in _STATE_PARTS:
        if part not in shapes:
            if message.HasField(part):
                raise invalid(f"{field}.{part}", f"is set: {_MODELS_WITHOUT[part].format(cell=spec.cell)} has none")
            continue
        values = array(getattr(message, part), spec.dtype, f"{field}.{part}")
        rows, width = shapes[part]
        if values.shape != (rows, count, width):
            raise invalid(f"{field}.{part}", f"has shape {list(values.shape)}: expected {[rows, count, width]}")
        parts.append(values)
    return tuple(parts)


def served_state(message: tensor_pb2.State, spec: ModelSpec, count: int, field: str) -> StateArrays:
    """Does the same for a state that outputs are computed from, in the model's precision. Gradients are in full."""
    parts = state(message, spec, count, field)
    if spec.precision == "int8" and np.abs(parts[0]).max(initial=0) > 1:
        most = parts[0].flat[np.abs(parts[0]).argmax()]
        raise invalid(f"{field}.hidden", f"has {most}: expected -1 to 1, as the model's precision is int8")
    return parts


def max_steps(spec: ModelSpec, config: ServerConfig) -> int:
    """Returns the most steps of a whole sequence; one of a bidirectional model must fit one slice."""
    most = config.max_steps_per_sequence
    return min(most, config.max_batch_steps) if spec.bidirectional else most


def timeout(seconds: float, field: str) -> float | None:
    """Returns the seconds, or None for 0."""
    if not (math.isfinite(seconds) and seconds >= 0):
        raise invalid(field, f"is {seconds}: expected seconds, at least 0, or 0 for none")
    return seconds or None


def output_bytes(output: OutputSpec, spec: ModelSpec) -> int:
    """Returns the bytes of one step's output."""
    item = 8 if spec.dtype == "float64" else 4
    match output.kind:
        case "labels":
            return 4
        case "hidden":
            return item * spec.outputs_width
        case "top_k":
            return (item + 4) * output.top_k
        case _:
            return item * spec.output_size


_MAX_LENGTH_BYTES = 5  # of one length on the wire


def state_bytes(spec: ModelSpec) -> int:
    """Returns the bytes of one sequence's state."""
    item = 8 if spec.dtype == "float64" else 4
    return item * sum(rows * width for rows, width in spec.state_shapes().values())


def reply_bytes(output: OutputSpec, spec: ModelSpec, steps: int, count: int, limit: int) -> int:
    """Returns the approximate bytes of a reply. Raises OVER_LIMIT if it does not fit one message."""
    size = steps * output_bytes(output, spec) + count * (state_bytes(spec) + _MAX_LENGTH_BYTES)
    if size + 1024 > limit:
        raise over_limit(
            "output", f"needs {size} bytes: expected at most {limit} in a reply; split the call, or stream"
        )
    return size


def fill_outputs(message: tensor_pb2.Outputs, values: Array | None, labels: Array | None) -> None:
    """Fills an output message in place; protobuf copies messages that are assigned."""
    if values is not None:
        tensors.encode_into(values, message.values)
    if labels is not None:
        tensors.encode_into(labels, message.labels)


def outputs_field(field: int, values: Array | None, labels: Array | None) -> wire.Buffers:
    """Returns a field that holds an output message, without copying the values: for large arrays."""
    message = tensor_pb2.Outputs()
    fill_outputs(message, None, labels)
    parts: wire.Buffers = [message.SerializeToString()]
    if values is not None:
        parts += wire.tensor(tensor_pb2.Outputs.VALUES_FIELD_NUMBER, values)
    return wire.message(field, parts)


def fill_state(message: tensor_pb2.State, parts: Iterable[str], arrays: StateArrays) -> None:
    """Fills a state message in place; arrays are [rows, N, width] per part."""
    for part, values in zip(parts, arrays, strict=True):
        tensors.encode_into(values, getattr(message, part))


def empty_outputs(output: OutputSpec, spec: ModelSpec) -> tuple[Array | None, Array | None]:
    """Returns the values and labels of a chunk of 0 steps."""
    width = {"hidden": spec.outputs_width, "top_k": output.top_k}.get(output.kind, spec.output_size)
    values = None if output.kind == "labels" else np.empty((0, width), spec.dtype)
    labels = {"labels": np.empty(0, "i4"), "top_k": np.empty((0, output.top_k), "i4")}.get(output.kind)
    return values, labels
