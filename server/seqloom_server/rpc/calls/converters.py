"""Messages to what the engine takes, every field checked, and the engine's outcomes to messages.

What is wrong is refused by the field's path, with what was sent and what is expected.
"""

import math
from collections.abc import Iterable

import numpy as np
from seqloom import tensors, wire
from seqloom.v1 import tensor_pb2

from seqloom_server.config import ServerConfig
from seqloom_server.engine.core.sequence import Array, OutputKind, OutputSpec, StateArrays
from seqloom_server.errors import Reason, ServerError, invalid
from seqloom_server.nn.spec import ModelSpec

_KINDS: dict[int, OutputKind] = {
    tensor_pb2.OUTPUT_KIND_UNSPECIFIED: "logits",
    tensor_pb2.OUTPUT_KIND_LOGITS: "logits",
    tensor_pb2.OUTPUT_KIND_PROBS: "probs",
    tensor_pb2.OUTPUT_KIND_LOG_PROBS: "log_probs",
    tensor_pb2.OUTPUT_KIND_LABELS: "labels",
    tensor_pb2.OUTPUT_KIND_HIDDEN: "hidden",
    tensor_pb2.OUTPUT_KIND_TOP_K: "top_k",
}
_OF_CLASSES = ("probs", "log_probs", "labels", "top_k")
_MODEL_DTYPES = {name: np.dtype(name) for name in ("float32", "float64")}
_FEW_BYTES = 128 << 10
_STATE_PARTS = ("hidden", "cell", "inputs")
_WITHOUT = {"cell": "{cell}", "inputs": "a model without a convolution over earlier inputs"}
_NO_SPEC = {kind: OutputSpec(kind) for kind in _KINDS.values()}


def output_spec(message: tensor_pb2.OutputSpec, spec: ModelSpec, field: str) -> OutputSpec:
    """Raises ServerError for an unknown kind, one that tells nothing of such a model, or a top_k that it has not."""
    kind = _KINDS.get(message.kind)
    if kind is None:
        raise invalid(f"{field}.kind", f"is {message.kind}: expected an OutputKind")
    if spec.output_size == 1 and kind in _OF_CLASSES:
        raise invalid(
            f"{field}.kind",
            f"is {kind}: the model has one output, of which softmax makes 1, and the label 0, whatever it is: expected "
            "logits or hidden",
        )
    if kind != "top_k":
        return _NO_SPEC[kind]
    if not 1 <= message.top_k <= spec.output_size:
        raise invalid(f"{field}.top_k", f"is {message.top_k}: expected 1 to {spec.output_size}")
    return OutputSpec(kind, message.top_k)


def array(message: tensor_pb2.Tensor, dtype: str, field: str) -> Array:
    """A finite array of the model's dtype, a view on the message. Raises ServerError."""
    data = message.data
    try:
        decoded = tensors.from_bytes(message.data_type, tuple(message.shape), data)
    except tensors.MalformedTensor as error:
        raise invalid(field, str(error)) from None
    if decoded.dtype != _MODEL_DTYPES[dtype]:
        raise invalid(field, f"is {decoded.dtype.name}: the model takes {dtype}")
    if _suspicious(data, decoded) and not np.isfinite(decoded).all():
        index = np.argwhere(~np.isfinite(decoded))[0].tolist()
        raise invalid(field, f"is {decoded[tuple(index)]} at {index}: expected finite numbers")
    return decoded


def _suspicious(data: bytes, decoded: Array) -> bool:
    """Whether some number may be infinite or none: a look that is cheap, after which each number is looked at.

    numpy lets go of the interpreter, which then comes back only when the device thread lets go of it; worth it only for
    much. The highest byte of what is no finite number, in little-endian IEEE 754, is 0x7f or 0xff.
    """
    if len(data) <= _FEW_BYTES:
        width = len(data) // max(1, decoded.size)  # on the wire
        highest = data[width - 1 :: width] if width else b""
        return b"\x7f" in highest or b"\xff" in highest
    flat = decoded.reshape(-1)
    with np.errstate(over="ignore"):
        return not math.isfinite(np.dot(flat, flat))


def frames(message: tensor_pb2.Tensor, spec: ModelSpec, field: str) -> Array:
    """Frames [k, D], k may be 0."""
    rows = array(message, spec.dtype, field)
    if rows.ndim != 2 or rows.shape[1] != spec.input_size:
        raise invalid(field, f"has shape {list(rows.shape)}: expected [steps, {spec.input_size}]")
    return rows


def sequences(message: tensor_pb2.SequenceBatch, spec: ModelSpec, max_sequences: int, max_steps: int) -> list[Array]:
    """N sequences [T_i, D], views on the message's rows."""
    rows = frames(message.rows, spec, "sequences.rows")
    lengths = checked_lengths(message.lengths, len(rows), max_sequences, max_steps, "sequences")
    return cut(rows, lengths)


def checked_lengths(lengths: Iterable[int], rows: int, max_sequences: int, max_steps: int, field: str) -> list[int]:
    """The lengths of N sequences that have so many rows together."""
    lengths, field = list(lengths), f"{field}.lengths"
    if not lengths:
        raise invalid(field, "is empty: expected at least one sequence")
    if len(lengths) > max_sequences:
        raise over_limit(field, f"has {len(lengths)} sequences: at most {max_sequences} are taken")
    if min(lengths) < 1:
        raise invalid(field, f"has {min(lengths)} at {lengths.index(min(lengths))}: expected at least 1")
    if max(lengths) > max_steps:
        raise over_limit(field, f"has {max(lengths)} steps: at most {max_steps} are taken")
    if sum(lengths) != rows:
        raise invalid(field, f"add up to {sum(lengths)}: rows has {rows}")
    return lengths


def cut(rows: Array, lengths: list[int]) -> list[Array]:
    """Cuts rows that follow one another into arrays of these lengths; views."""
    ends = np.cumsum(lengths).tolist()
    return [rows[end - length : end] for length, end in zip(lengths, ends, strict=True)]


def state(message: tensor_pb2.State, spec: ModelSpec, count: int, field: str) -> StateArrays:
    """The state of `count` sequences: [rows, count, width] per part of spec.state_shapes()."""
    shapes = spec.state_shapes()
    parts = []
    for part in _STATE_PARTS:
        if part not in shapes:
            if message.HasField(part):
                raise invalid(f"{field}.{part}", f"is given: {_WITHOUT[part].format(cell=spec.cell)} has none")
            continue
        values = array(getattr(message, part), spec.dtype, f"{field}.{part}")
        rows, width = shapes[part]
        if values.shape != (rows, count, width):
            raise invalid(f"{field}.{part}", f"has shape {list(values.shape)}: expected {[rows, count, width]}")
        parts.append(values)
    return tuple(parts)


def max_steps(spec: ModelSpec, config: ServerConfig) -> int:
    """How long a whole sequence may be: one of a bidirectional model runs at once."""
    most = config.max_steps_per_sequence
    return min(most, config.max_batch_steps) if spec.bidirectional else most


def timeout(seconds: float, field: str) -> float | None:
    """Seconds, or None for 0."""
    if not (math.isfinite(seconds) and seconds >= 0):
        raise invalid(field, f"is {seconds}: expected seconds, at least 0, or 0 for none")
    return seconds or None


def output_bytes(output: OutputSpec, spec: ModelSpec) -> int:
    """Bytes of the output of one step."""
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


_LENGTH_BYTES = 5  # the most that a length takes on the wire


def state_bytes(spec: ModelSpec) -> int:
    """Bytes of the state of one sequence."""
    item = 8 if spec.dtype == "float64" else 4
    return item * sum(rows * width for rows, width in spec.state_shapes().values())


def reply_bytes(output: OutputSpec, spec: ModelSpec, steps: int, count: int, limit: int) -> int:
    """About how large a reply will be. Refuses a call whose reply could not be sent in one message."""
    size = steps * output_bytes(output, spec) + count * (state_bytes(spec) + _LENGTH_BYTES)
    if size + 1024 > limit:
        raise over_limit("output", f"would take {size} bytes: a reply has at most {limit}; cut the call, or stream")
    return size


def over_limit(field: str, message: str) -> ServerError:
    """The error of a field that is longer or wider than this server ever takes."""
    return ServerError(Reason.OVER_LIMIT, f"{field}: {message}", field=field)


def fill_outputs(message: tensor_pb2.Outputs, values: Array | None, labels: Array | None) -> None:
    """Fills an output message in its place; protobuf would copy one that is put in later."""
    if values is not None:
        tensors.encode_into(values, message.values)
    if labels is not None:
        tensors.encode_into(labels, message.labels)


def outputs_field(field: int, values: Array | None, labels: Array | None) -> wire.Buffers:
    """Returns a field that holds an output message, the values not copied yet: for many of them."""
    message = tensor_pb2.Outputs()
    fill_outputs(message, None, labels)
    parts: wire.Buffers = [message.SerializeToString()]
    if values is not None:
        parts += wire.tensor(tensor_pb2.Outputs.VALUES_FIELD_NUMBER, values)
    return wire.message(field, parts)


def fill_state(message: tensor_pb2.State, parts: Iterable[str], arrays: StateArrays) -> None:
    """Fills a state message in its place; arrays are [rows, N, width] per part."""
    for part, values in zip(parts, arrays, strict=True):
        tensors.encode_into(values, getattr(message, part))


def empty_outputs(output: OutputSpec, spec: ModelSpec) -> tuple[Array | None, Array | None]:
    """The values and labels of a chunk of 0 steps."""
    width = {"hidden": spec.outputs_width, "top_k": output.top_k}.get(output.kind, spec.output_size)
    values = None if output.kind == "labels" else np.empty((0, width), spec.dtype)
    labels = {"labels": np.empty(0, "i4"), "top_k": np.empty((0, output.top_k), "i4")}.get(output.kind)
    return values, labels
