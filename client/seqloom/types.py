"""The SDK's arguments and results: model specifications, output kinds, hidden state, results, server information."""

import dataclasses
import operator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from seqloom.errors import InvalidArgument
from seqloom.tensors import Array

Cell: TypeAlias = Literal["elman", "gru", "lstm"]
Activation: TypeAlias = Literal["tanh", "relu"]
DType: TypeAlias = Literal["float32", "float64"]
Precision: TypeAlias = Literal["full", "tf32", "bf16", "int8"]
OutputName: TypeAlias = Literal["logits", "probs", "log_probs", "labels", "hidden"]

_CHOICES = {
    "cell": ("elman", "gru", "lstm"),
    "activation": ("tanh", "relu"),
    "dtype": ("float32", "float64"),
    "precision": ("full", "tf32", "bf16", "int8"),
}
_MAX_INT8_INPUTS = (2**31 - 1) // (255 * 127)  # of one sum, as server/seqloom_server/nn/spec.py explains
_SIZES = {"input_size": 1, "hidden_size": 1, "output_size": 1, "num_layers": 1, "conv_channels": 0, "conv_width": 0}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The specification of a recurrent network: `num_layers` layers of one cell type and a linear output layer.

    input_size: D. hidden_size: H, units of each layer. output_size: O. activation: "tanh" or "relu", of Elman cells
    only. conv_channels, conv_width: a causal convolution in front of the first layer, of `conv_channels` channels over
    the last `conv_width` inputs, followed by relu; both 0 for none. bidirectional: each layer also runs from the last
    step to the first, so only whole sequences can be run. precision: how outputs of a float32 network are computed:
    "full"; "tf32", with tf32 products if the device has them; "bf16", with weights and products in bfloat16 and sums in
    float32; "int8", with weights, inputs and hidden states in 8-bit whole numbers, where a sequence's outputs have the
    same bits alone and in any batch: for states in [-1, 1], so not for relu cells. Gradients are always computed in
    full. Raises InvalidArgument. The server limits the sizes.
    """

    cell: Cell
    input_size: int
    hidden_size: int
    output_size: int
    num_layers: int = 1
    activation: Activation = "tanh"
    dtype: DType = "float32"
    conv_channels: int = 0
    conv_width: int = 0
    bidirectional: bool = False
    precision: Precision = "full"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise InvalidArgument(f"{name}: is {value!r}: expected one of {', '.join(choices)}")
        for name, least in _SIZES.items():
            object.__setattr__(self, name, integer(getattr(self, name), name, least))
        if not isinstance(self.bidirectional, bool):
            raise InvalidArgument(f"bidirectional: is {self.bidirectional!r}: expected True or False")
        if bool(self.conv_channels) != bool(self.conv_width):
            missing = "conv_width" if self.conv_channels else "conv_channels"
            raise InvalidArgument(f"{missing}: is 0: expected at least 1, as a convolution has channels and a width")
        if self.activation != "tanh" and self.cell != "elman":
            raise InvalidArgument(f"activation: is {self.activation!r}: expected 'tanh' for {self.cell} cells")
        if self.precision != "full" and self.dtype != "float32":
            raise InvalidArgument(f"precision: is {self.precision!r}: expected 'full' for {self.dtype}")
        if self.precision == "int8" and self.activation == "relu":
            raise InvalidArgument("precision: is 'int8': expected another for relu, whose states have no bound")
        if self.precision == "int8" and self.input_size * self.conv_width > _MAX_INT8_INPUTS:
            raise InvalidArgument(
                f"conv_width: is {self.conv_width}: expected at most {_MAX_INT8_INPUTS // self.input_size} for "
                f"{self.input_size} inputs in int8, whose sums have at most {_MAX_INT8_INPUTS} products"
            )

    def state_shapes(self) -> dict[str, tuple[int, int]]:
        """Returns (rows, width) of each part of State that this network has: for N sequences it is [rows, N, width]."""
        rows = self.num_layers * (2 if self.bidirectional else 1)
        shapes = {"hidden": (rows, self.hidden_size)}
        if self.cell == "lstm":
            shapes["cell"] = shapes["hidden"]
        if self.conv_width > 1:
            shapes["inputs"] = (self.conv_width - 1, self.input_size)
        return shapes


@dataclass(frozen=True, slots=True)
class TopK:
    """An output kind: the k best classes of each step, best first. The outputs are TopKOutput."""

    k: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", integer(self.k, "k"))


Outputs: TypeAlias = OutputName | TopK


class ShortRepr:
    """Shows arrays by dtype and shape in repr(), not by their elements."""

    __slots__ = ()

    def __repr__(self) -> str:
        fields = ((each.name, getattr(self, each.name)) for each in dataclasses.fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{name}={_short_repr(value)}' for name, value in fields)})"


def _short_repr(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, list):
        return f"[{', '.join(map(_short_repr, value[:4]))}{f', ... {len(value)} in all' if len(value) > 4 else ''}]"
    return repr(value)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TopKOutput(ShortRepr):
    """The k best classes of each of T steps, best first.

    labels: [T, k] int32. scores: their log-probabilities, [T, k].
    """

    labels: Array
    scores: Array

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class State(ShortRepr):
    """The hidden state of N sequences.

    hidden: [L, N, H], or [2 L, N, H] for a bidirectional network, in the order of torch.nn. cell: the cell state of an
    LSTM, of the same shape, else None. inputs: the last inputs of a convolution with conv_width above 1, oldest first,
    [conv_width - 1, N, D], else None.
    """

    hidden: Array
    cell: Array | None = None
    inputs: Array | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """The time of a request in the server's queue and in computation, in seconds; the longest of its sequences."""

    queue_seconds: float
    compute_seconds: float


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class InferenceResult(ShortRepr):
    """The result of `infer` for N sequences, in their order.

    outputs: one array for each sequence, of the model's dtype, possibly read-only: [T_i, O], or for "hidden" [T_i, H],
    [T_i, 2 H] if bidirectional; for "labels" int32 [T_i]; for TopK a TopKOutput. final_state: State of [L, N, H].
    weights_version: of the weights that all of it was computed with.
    """

    outputs: list[Any]  # not a union of arrays and TopKOutput, which every caller would have to narrow
    final_state: State
    weights_version: int
    timing: Timing


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Chunk(ShortRepr):
    """The outputs of one chunk of k frames of a stream.

    first_step: the step of the first frame in the stream, counted from 0; a reset does not restart the count. outputs:
    [k, O], [k, H], [k] or TopKOutput, as in InferenceResult.
    """

    first_step: int
    outputs: Any  # as in InferenceResult

    def __len__(self) -> int:
        return len(self.outputs)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Snapshot(ShortRepr):
    """The hidden state of a stream after `steps` steps, a State of [L, 1, H], as initial_state of another stream."""

    steps: int
    state: State


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class GroupChunk(ShortRepr):
    """The outputs of one chunk of k frames of w streams of a group.

    first_step: int64 [w], the step of each stream's first frame, counted from 0; a reset does not restart the count.
    outputs: [w, k, O], [w, k, H], [w, k], or a TopKOutput of [w, k, top], as in InferenceResult.
    """

    first_step: Array
    outputs: Any  # as in InferenceResult


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class GroupSnapshot(ShortRepr):
    """The hidden states of a group's n streams, a State of [L, n, H], after `steps` steps, int64 [n], of each."""

    steps: Array
    state: State


class BreakableInfo:
    """The description of a model or a run, which may be broken, that is, impossible to load."""

    __slots__ = ()

    broken: str

    def _broken_error(self, what: str, reason: str) -> InvalidArgument:
        return InvalidArgument(f"{what} cannot be loaded: {self.broken}", reason=reason)

    def __repr__(self) -> str:
        names = [each.name for each in dataclasses.fields(self)]  # type: ignore[arg-type]
        shown = [names[0], "broken"] if self.broken else names[:-1]
        fields = (f"{name.removeprefix('_')}={getattr(self, name)!r}" for name in shown)
        return f"{type(self).__name__}({', '.join(fields)})"


@dataclass(frozen=True, slots=True, repr=False)
class ModelInfo(BreakableInfo):
    """A model on the server.

    broken: why the model cannot be loaded; "" for a model that is served. Of a broken model only the name is known:
    weights_version and parameter_count are 0, and spec raises InvalidArgument.
    """

    name: str
    _spec: ModelSpec | None
    weights_version: int
    parameter_count: int
    broken: str = ""

    @property
    def spec(self) -> ModelSpec:
        """The model's specification. Raises InvalidArgument, with the reason MODEL_BROKEN, if the model is broken."""
        if self._spec is None:
            raise self._broken_error(f"model {self.name!r}", "MODEL_BROKEN")
        return self._spec


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a server. A step is a frame of one sequence; `max_batch_steps` counts padded cells of a batch."""

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


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The version, device ("cpu" or "cuda") and limits of a server."""

    version: str
    device: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class TLS:
    """The TLS settings of a client. Each certificate or key is PEM bytes or the path of a PEM file.

    ca: the trusted authorities; None for the public ones. certificate, key: of the client, for servers that require
    them. server_name: the name in the server's certificate, if it is not the address.
    """

    ca: bytes | str | None = None
    certificate: bytes | str | None = None
    key: bytes | str | None = field(default=None, repr=False)
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.key is None) != (self.certificate is None):
            raise InvalidArgument("tls: only one of certificate and key is given: expected both or none")


def integer(value: object, name: str, least: int = 1) -> int:
    """Returns `value` as an int of at least `least`. Raises InvalidArgument for the argument `name`."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise InvalidArgument(f"{name}: is {value!r}: expected an integer of at least {least}")
    return number
