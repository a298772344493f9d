"""Converts state dicts of torch.nn to networks: infers cell and sizes from names and shapes, and refuses ambiguity."""

import re
from collections.abc import Mapping
from typing import Literal, cast

import torch

from seqloom_server.nn.files.tied_tensors import PARAMETER
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.spec import GATES, Activation, InvalidSpec, ModelSpec, cell_of_gates

_EXPECTED = (
    "expected rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0, the same for each other layer, "
    "output.weight, output.bias, and for a convolution conv.weight, conv.bias"
)
_FIRST = "rnn.weight_ih_l0"

# (pattern of torch.nn's names of unsupported tensors, what they are and what to do)
_REFUSED: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"weight_hr_l\d"),
        "is the projection of an LSTM with proj_size, which is not supported: expected the same network without it: "
        "with P = weight_hr_l0, weight_hh_l0 @ P in place of weight_hh_l0, and likewise in the weights that read the "
        "layer's outputs, weight_ih_l1 or output.weight (each direction with its own columns)",
    ),
    (
        re.compile(r"(^|\.)parametrizations\.|weight\w*_(g|v|u|orig|mask)$"),
        "belongs to weights that are computed (by weight or spectral norm, or pruning): expected plain weights; before "
        "saving, call torch.nn.utils.parametrize.remove_parametrizations, or the older kinds' own remove functions",
    ),
    (
        re.compile(r"(weight|bias)_(ih|hh)$"),
        'belongs to a torch.nn.RNNCell, GRUCell or LSTMCell: expected a layer, whose names end with "_l0": rename the '
        "cell's four tensors",
    ),
)


def from_state_dict(
    parameters: Mapping[str, torch.Tensor], activation: Activation = "tanh", *, causal_convolution: bool = False
) -> Network:
    """Returns a network on the CPU with a copy of a state dict whose names begin with "conv.", "rnn." and "output.".

    The cell and the sizes are inferred from names and shapes. activation: of an Elman network. causal_convolution: the
    convolution is causal, with zeros before the first step, and followed by relu; not needed for width 1. Biases are
    zeros if the state dict has none at all. Raises InvalidSpec, which names the tensor, for tensors that are missing,
    unknown, of a wrong shape or type, or not finite.
    """
    _check_tensors(parameters)
    spec = _spec_of(parameters, activation)
    if causal_convolution and not spec.conv_channels:
        raise InvalidSpec("conv.weight", "is missing: expected it, as causal_convolution is set")
    if spec.conv_width > 1 and not causal_convolution:
        raise InvalidSpec(
            "conv.weight",
            f"has width {spec.conv_width}, and a state dict does not say how it is padded: expected a causal "
            f"convolution, whose output t sees the inputs t-{spec.conv_width - 1} to t, with zeros before the first, "
            'followed by relu; one padded on both sides, as with padding="same", would give other outputs. '
            "If it is causal, set causal_convolution or --causal-convolution",
        )
    copies = {}
    for name, tensor in _with_biases(parameters, spec).items():
        expected, dtype = spec.parameter_shapes()[name], parameters[_FIRST].dtype
        if tuple(tensor.shape) != expected or tensor.dtype != dtype:
            raise InvalidSpec(name, f"is {tensor.dtype} {list(tensor.shape)}: expected {dtype} {list(expected)}")
        non_finite = (~torch.isfinite(tensor)).nonzero()
        if len(non_finite):
            place = non_finite[0].tolist()
            raise InvalidSpec(name, f"holds {tensor[tuple(place)].item()} at {place}: expected finite numbers")
        copies[name] = tensor.detach().cpu().clone()
    return Network(spec, copies, "cpu")


def _check_tensors(parameters: Mapping[str, torch.Tensor]) -> None:
    if not isinstance(parameters, Mapping):
        raise InvalidSpec("parameters", f"is a {type(parameters).__name__}: expected a state dict; {_EXPECTED}")
    for name, tensor in parameters.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise InvalidSpec(_plain(name), f"is a {type(tensor).__name__}: expected names of tensors; {_EXPECTED}")
        if torch.nn.parameter.is_lazy(tensor):
            raise InvalidSpec(_plain(name), "has no shape yet: expected a shape; run the lazy module once")
        if tensor.is_meta or tensor.layout != torch.strided:
            kind = "on the meta device" if tensor.is_meta else f"of layout {tensor.layout}"
            raise InvalidSpec(_plain(name), f"is {kind}: expected a dense tensor with numbers")
    for pattern, problem in _REFUSED:
        for name in parameters:
            if pattern.search(name):
                raise InvalidSpec(_plain(name), problem)


def _spec_of(parameters: Mapping[str, torch.Tensor], activation: Activation) -> ModelSpec:
    for name, rank in ((_FIRST, 2), ("rnn.weight_hh_l0", 2), ("output.weight", 2), ("conv.weight", 3)):
        if name not in parameters:
            if name != "conv.weight" or "conv.bias" in parameters:
                raise _missing(name, parameters)
        elif parameters[name].dim() != rank:
            letters = "[channels, input_size, width]" if rank == 3 else "[rows, columns]"
            raise InvalidSpec(name, f"has shape {list(parameters[name].shape)}: expected {letters}")
    first, recurrent, last = (parameters[name] for name in (_FIRST, "rnn.weight_hh_l0", "output.weight"))
    hidden = recurrent.shape[1]
    gates, rest = divmod(recurrent.shape[0], max(1, hidden))
    cell = cell_of_gates(gates)
    if rest or cell is None:
        fitting = ", ".join(f"{[count * hidden, hidden]} for {cell}" for cell, count in GATES.items())
        raise InvalidSpec("rnn.weight_hh_l0", f"has shape {list(recurrent.shape)}: expected {fitting}")
    if first.dtype not in (torch.float32, torch.float64):
        raise InvalidSpec(
            "dtype",
            f"is {first.dtype} in {_FIRST}: expected float32 or float64; before saving, call module.float()",
        )
    kernel = parameters.get("conv.weight")
    channels, inputs, width = (0, first.shape[1], 0) if kernel is None else kernel.shape
    found = [match for match in map(PARAMETER.fullmatch, parameters) if match and match["layer"]]
    return ModelSpec(
        cell=cell,
        activation=activation,
        input_size=inputs,
        hidden_size=hidden,
        output_size=last.shape[0],
        num_layers=1 + max(int(match["layer"]) for match in found),
        conv_channels=channels,
        conv_width=width,
        bidirectional=any(match["back"] for match in found),
        dtype=cast(Literal["float32", "float64"], str(first.dtype).removeprefix("torch.")),
    )


def _with_biases(parameters: Mapping[str, torch.Tensor], spec: ModelSpec) -> dict[str, torch.Tensor]:
    """Returns a tensor for each of the network's names, zeros for its biases if the state dict has none."""
    shapes = spec.parameter_shapes()
    kind = f"{spec.num_layers}-layer {'bidirectional ' if spec.bidirectional else ''}{spec.cell}"
    unknown = [name for name in parameters if name not in shapes]
    if unknown:
        raise InvalidSpec(_plain(unknown[0]), f"is not part of a {kind}{_and_more(unknown)}: {_EXPECTED}")
    missing = [name for name in shapes if name not in parameters]
    weights = [name for name in missing if ".bias" not in name]
    if weights:
        raise InvalidSpec(weights[0], f"is missing{_and_more(weights)}: expected in a {kind}, as the other tensors are")
    biases = [name for name in parameters if ".bias" in name]
    if missing and biases:
        raise InvalidSpec(
            missing[0],
            f"is missing{_and_more(missing)}, while {biases[0]} is there: expected all biases, or none at all; "
            f"if the network has no such bias, add zeros of shape {list(shapes[missing[0]])} under that name",
        )
    zeros = {name: parameters[_FIRST].new_zeros(shapes[name]) for name in missing}
    return {name: zeros[name] if name in zeros else parameters[name] for name in shapes}


def _missing(name: str, parameters: Mapping[str, torch.Tensor]) -> InvalidSpec:
    """Returns the error of a missing tensor that determines the network's sizes, with advice."""
    if not parameters:
        return InvalidSpec(name, f"is missing, since there are no tensors at all: {_EXPECTED}")
    found = ", ".join(_shown(present) for present in list(parameters)[:6])
    more = f" and {len(parameters) - 6} more" if len(parameters) > 6 else ""
    return InvalidSpec(name, f"is missing among {found}{more}: {_EXPECTED}; {_how_to_name(name, parameters)}")


def _how_to_name(name: str, parameters: Mapping[str, torch.Tensor]) -> str:
    wrapped = [present for present in parameters if present.endswith("." + _FIRST)]
    if wrapped:
        return f"remove the prefix {_shown(wrapped[0].removesuffix(_FIRST))} from the names"
    if name == "output.weight" and all(present.startswith(("rnn.", "conv.")) for present in parameters):
        return 'for hidden states alone, add an output.weight of zeros [1, width] and its bias, and request "hidden"'
    layers = [present for present in parameters if present.endswith("weight_ih_l0")]
    if _FIRST in parameters or not layers:
        prefix = name.partition(".")[0]
        layer = {"rnn": "recurrent layers", "output": "linear layer after them", "conv": "convolution"}[prefix]
        return f'add the prefix "{prefix}." to the names of the {layer}'
    prefix = layers[0].removesuffix("weight_ih_l0")
    if not prefix:
        return 'add the prefix "rnn." to the names of the recurrent layers, "output." to those of the linear layer'
    return f'replace the prefix {_shown(prefix)} by "rnn.", and that of the linear layer after it by "output."'


def _and_more(names: list[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""


def _plain(name: object) -> str:
    return repr(name).strip("'")[:80]  # on one line, whatever characters it has


def _shown(name: str) -> str:
    return f"'{_plain(name)}'"
