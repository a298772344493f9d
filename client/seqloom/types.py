"""What callers give and get: model specifications, output kinds, hidden state, results, a server's word of itself."""

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
Precision: TypeAlias = Literal["full", "tf32", "bf16"]
OutputName: TypeAlias = Literal["logits", "probs", "log_probs", "labels", "hidden"]

_CHOICES = {
    "cell": ("elman", "gru", "lstm"),
    "activation": ("tanh", "relu"),
    "dtype": ("float32", "float64"),
    "precision": ("full", "tf32", "bf16"),
}
_SIZES = {"input_size": 1, "hidden_size": 1, "output_size": 1, "num_layers": 1, "conv_channels": 0, "conv_width": 0}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A recurrent network: `num_layers` layers of one cell type, H units each, and a linear output layer.

    input_size is D, hidden_size H, output_size O. activation is Elman's, "tanh" or "relu"; the other cells have their
    own. conv_channels and conv_width: a causal convolution of so many channels over the last so many inputs, then relu,
    in front of the first layer; 0 and 0 for none. bidirectional: each layer also runs from the last step to the first,
    so that only whole sequences can be run. precision: how a float32 network's outputs are computed: in full, with the
    products of tf32 where the device has them, or with weights and products in bfloat16 and sums in float32; gradients
    are always computed in full. Raises InvalidArgument. The server bounds the sizes.
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
            raise InvalidArgument(f"{missing}: is 0: a convolution has channels and a width")
        if self.activation != "tanh" and self.cell != "elman":
            raise InvalidArgument(f"activation: is {self.activation!r}: a {self.cell} has only 'tanh'")
        if self.precision != "full" and self.dtype != "float32":
            raise InvalidArgument(f"precision: is {self.precision!r}: {self.dtype} has only 'full'")

    def state_shapes(self) -> dict[str, tuple[int, int]]:
        """The parts of State that such a network has, as (rows, width): of N sequences a part is [rows, N, width]."""
        rows = self.num_layers * (2 if self.bidirectional else 1)
        shapes = {"hidden": (rows, self.hidden_size)}
        if self.cell == "lstm":
            shapes["cell"] = shapes["hidden"]
        if self.conv_width > 1:
            shapes["inputs"] = (self.conv_width - 1, self.input_size)
        return shapes


@dataclass(frozen=True, slots=True)
class TopK:
    """Asks for the k best classes of each step, best first; the outputs are TopKOutput."""

    k: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", integer(self.k, "k"))


Outputs: TypeAlias = OutputName | TopK


class ShortRepr:
    """Shows arrays by data type and shape, not by their numbers."""

    __slots__ = ()

    def __repr__(self) -> str:
        fields = ((each.name, getattr(self, each.name)) for each in dataclasses.fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{name}={_brief(value)}' for name, value in fields)})"


def _brief(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, list):
        return f"[{', '.join(map(_brief, value[:4]))}{f', ... {len(value)} in all' if len(value) > 4 else ''}]"
    return repr(value)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TopKOutput(ShortRepr):
    """The k best classes of T steps, best first.

    labels: [T, k] int32. scores: their log-probabilities, [T, k].
    """

    labels: Array
    scores: Array

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class State(ShortRepr):
    """The hidden state of N sequences.

    hidden: [L, N, H], or [2 L, N, H] of a bidirectional network, ordered as torch.nn orders them. cell: the same of an
    LSTM, else None. inputs: [conv_width - 1, N, D], the last inputs, oldest first, where a convolution looks back at
    them, else None.
    """

    hidden: Array
    cell: Array | None = None
    inputs: Array | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a request's time went on the server, in seconds; of several sequences, the longest."""

    queue_seconds: float
    compute_seconds: float


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class InferenceResult(ShortRepr):
    """What `infer` returns for N sequences, in their order.

    outputs: one array a sequence, of the model's dtype: [T_i, O], or [T_i, H] for "hidden", [T_i, 2 H] of bidirectional
    layers; int32 [T_i] for "labels"; TopKOutput for TopK; they may be read-only. final_state: State of [L, N, H].
    All of it was made by the weights of `weights_version`.
    """

    outputs: list[Any]  # not a union of arrays and TopKOutput, which every caller would have to narrow
    final_state: State
    weights_version: int
    timing: Timing


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Chunk(ShortRepr):
    """The outputs of one chunk of k frames that a stream was sent.

    first_step: the stream's step of the first frame, counted from 0 over resets. outputs: [k, O], [k, H], [k] or
    TopKOutput, as in InferenceResult.
    """

    first_step: int
    outputs: Any  # as in InferenceResult

    def __len__(self) -> int:
        return len(self.outputs)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Snapshot(ShortRepr):
    """A stream's state after so many steps, State of [L, 1, H]; a stream that is opened with it continues there."""

    steps: int
    state: State


class Described:
    """What a server tells of a model or a run, which may be broken: then little is known of it."""

    __slots__ = ()

    broken: str

    def _unknown(self, what: str, reason: str) -> InvalidArgument:
        return InvalidArgument(f"{what} cannot be loaded: {self.broken}", reason=reason)

    def __repr__(self) -> str:
        names = [each.name for each in dataclasses.fields(self)]  # type: ignore[arg-type]
        shown = [names[0], "broken"] if self.broken else names[:-1]
        fields = (f"{name.removeprefix('_')}={getattr(self, name)!r}" for name in shown)
        return f"{type(self).__name__}({', '.join(fields)})"


@dataclass(frozen=True, slots=True, repr=False)
class ModelInfo(Described):
    """A model as the server has it.

    broken: why its folder cannot be loaded, in words, "" for a model that is served. Of a broken one nothing else is
    known: version and count are 0, and to ask for its spec raises InvalidArgument.
    """

    name: str
    _spec: ModelSpec | None
    weights_version: int
    parameter_count: int
    broken: str = ""

    @property
    def spec(self) -> ModelSpec:
        """What network it is. Raises InvalidArgument, with the reason MODEL_BROKEN, where nobody knows."""
        if self._spec is None:
            raise self._unknown(f"model {self.name!r}", "MODEL_BROKEN")
        return self._spec


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes. Steps are frames of one sequence; `max_batch_steps` counts padded cells of a batch."""

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
    """A server's version, its device ("cpu" or "cuda") and limits."""

    version: str
    device: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class TLS:
    """How to talk to a server over TLS; each is PEM bytes or the path of a PEM file.

    root_certificates: whom to trust; by default the public authorities. private_key and certificate_chain: who we
    are, for servers that ask. server_name: the name in the server's certificate where the address is another.
    """

    root_certificates: bytes | str | None = None
    private_key: bytes | str | None = field(default=None, repr=False)
    certificate_chain: bytes | str | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.private_key is None) != (self.certificate_chain is None):
            raise InvalidArgument("tls: private_key and certificate_chain belong together: only one is given")


def integer(value: object, name: str, least: int = 1) -> int:
    """Returns an integer of at least `least` as an int. Raises InvalidArgument naming it."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise InvalidArgument(f"{name}: is {value!r}: expected an integer of at least {least}")
    return number
