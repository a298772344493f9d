"""The specification of a network: cell, sizes, data type, shapes of parameters and states. Needs no torch."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Cell = Literal["elman", "gru", "lstm"]
Activation = Literal["tanh", "relu"]
DType = Literal["float32", "float64"]
Precision = Literal["full", "tf32", "bf16", "int8"]
OutputKind = Literal["logits", "probs", "log_probs", "labels", "hidden", "top_k"]

MAX_INPUT_SIZE = MAX_HIDDEN_SIZE = 16_384
MAX_OUTPUT_SIZE = 1_000_000
MAX_LAYERS = 16
MAX_CONV_WIDTH = 64
MAX_PARAMETERS = 2**31
# of one sum in int8: the largest products, of an input from 1 to 255 and a weight of 127, then still fit into 32 bits
MAX_INT8_INPUTS = (2**31 - 1) // (255 * 127)

# the number of gates, whose weights torch.nn stacks in one matrix: rows of weight_ih and weight_hh in units of H
GATES: dict[Cell, int] = {"elman": 1, "gru": 3, "lstm": 4}

_CHOICES: dict[str, tuple[str, ...]] = {
    "cell": ("elman", "gru", "lstm"),
    "activation": ("tanh", "relu"),
    "dtype": ("float32", "float64"),
    "precision": ("full", "tf32", "bf16", "int8"),
}
_BOUNDS = {
    "input_size": (1, MAX_INPUT_SIZE),
    "hidden_size": (1, MAX_HIDDEN_SIZE),
    "output_size": (1, MAX_OUTPUT_SIZE),
    "num_layers": (1, MAX_LAYERS),
    "conv_channels": (0, MAX_HIDDEN_SIZE),
    "conv_width": (0, MAX_CONV_WIDTH),
}


class InvalidSpec(ValueError):
    """An invalid specification; `field` is the invalid field, the text says what is expected."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A recurrent network: `num_layers` layers of one cell type, H units each, and a linear output layer.

    input_size is D, hidden_size H, output_size O. activation: phi of an Elman network, "tanh" for other cells, whose
    functions are fixed. conv_channels, conv_width: channels and kernel width of a causal convolution with relu before
    the first layer; 0 and 0 for none. bidirectional: each layer also runs from the last step to the first, so that
    only whole sequences can be run. precision: of a float32 network's outputs: full, tf32 products if the device has
    them, weights and products in bfloat16 (except the convolution's), or in 8-bit whole numbers, "int8", which takes
    hidden states that lie in [-1, 1]; gradients are always computed in full precision. Raises InvalidSpec.
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
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            if not (isinstance(value, str) and value in choices):
                raise InvalidSpec(field, f"is {_shown(value)}: expected one of {', '.join(choices)}")
        for field, (least, most) in _BOUNDS.items():
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise InvalidSpec(field, f"is {_shown(value)}: expected an integer from {least} to {most}")
        if not isinstance(self.bidirectional, bool):
            raise InvalidSpec("bidirectional", f"is {_shown(self.bidirectional)}: expected true or false")
        if bool(self.conv_channels) != bool(self.conv_width):
            missing = "conv_width" if self.conv_channels else "conv_channels"
            raise InvalidSpec(missing, "is 0: expected conv_channels and conv_width, or neither")
        if self.activation != "tanh" and self.cell != "elman":
            raise InvalidSpec("activation", f"is {self.activation!r}: {self.cell} has only 'tanh'")
        if self.precision != "full" and self.dtype != "float32":
            raise InvalidSpec("precision", f"is {self.precision!r}: {self.dtype} has only 'full'")
        if self.precision == "int8" and self.activation == "relu":
            raise InvalidSpec("precision", "is 'int8': expected another for relu, whose states have no bound")
        if self.precision == "int8" and self.input_size * self.conv_width > MAX_INT8_INPUTS:  # layers have fewer
            most = MAX_INT8_INPUTS // self.input_size
            raise InvalidSpec(
                "conv_width",
                f"is {self.conv_width}: expected at most {most} for {self.input_size} inputs in int8, whose sums have "
                f"at most {MAX_INT8_INPUTS} products",
            )
        if self.parameter_count > MAX_PARAMETERS:
            # the larger size has the most effect
            field = "output_size" if self.output_size > self.hidden_size else "hidden_size"
            raise InvalidSpec(field, f"makes {self.parameter_count} parameters: expected at most {MAX_PARAMETERS}")

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "ModelSpec":  # each field is checked
        """Returns the spec of an object as to_json() returns it; fields that have a default may be missing.

        Raises InvalidSpec, also for unknown or missing keys.
        """
        known = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(cls)}
        for key in fields:
            if key not in known:
                raise InvalidSpec(_shown(key), f"unknown field of a model: expected {', '.join(known)}")
        for name, required in known.items():
            if required and name not in fields:
                raise InvalidSpec(name, "is missing")
        return cls(**fields)

    def to_json(self) -> dict[str, object]:
        """Returns every field by name."""
        return dataclasses.asdict(self)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns shapes by torch.nn's names, in its order: "rnn.weight_ih_l0" [gates H, D], ... "output.bias" [O]."""
        rows, hidden = GATES[self.cell] * self.hidden_size, self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        if self.conv_channels:
            shapes["conv.weight"] = (self.conv_channels, self.input_size, self.conv_width)
            shapes["conv.bias"] = (self.conv_channels,)
        for layer in range(self.num_layers):
            width = self.outputs_width if layer else self.conv_channels or self.input_size
            for direction in ("", "_reverse")[: self.directions]:
                shapes[f"rnn.weight_ih_l{layer}{direction}"] = (rows, width)
                shapes[f"rnn.weight_hh_l{layer}{direction}"] = (rows, hidden)
                shapes[f"rnn.bias_ih_l{layer}{direction}"] = (rows,)
                shapes[f"rnn.bias_hh_l{layer}{direction}"] = (rows,)
        shapes["output.weight"] = (self.output_size, self.outputs_width)
        shapes["output.bias"] = (self.output_size,)
        return shapes

    @property
    def parameter_count(self) -> int:
        """The number of trained numbers."""
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    @property
    def directions(self) -> int:
        """2 if layers are bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def outputs_width(self) -> int:
        """The width of a layer's s_t, and of "hidden" outputs: H, or 2 H for both directions side by side."""
        return self.directions * self.hidden_size

    def state_shapes(self) -> dict[str, tuple[int, int]]:
        """Returns the parts of a sequence's state as (rows, width); for N sequences a part is [rows, N, width].

        "hidden" and an LSTM's "cell": a row for each layer and direction, in torch.nn's order. "inputs": the last
        conv_width - 1 inputs, oldest first, zeros before the first.
        """
        shapes = {"hidden": (self.num_layers * self.directions, self.hidden_size)}
        if self.cell == "lstm":
            shapes["cell"] = shapes["hidden"]
        if self.conv_width > 1:
            shapes["inputs"] = (self.conv_width - 1, self.input_size)
        return shapes

    @property
    def state_parts(self) -> tuple[str, ...]:
        """The names of state_shapes(), in the order of StateArrays."""
        return tuple(self.state_shapes())


def cell_of_gates(gates: int) -> Cell | None:
    """Returns the cell whose weight matrices have `gates` times H rows, or None."""
    return {count: cell for cell, count in GATES.items()}.get(gates)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
