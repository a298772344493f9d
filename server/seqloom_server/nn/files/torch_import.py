"""Converts torch.nn modules to networks; a module's type and settings say what a state dict does not."""

from collections.abc import Mapping

import torch

from seqloom_server.nn.files.state_dict import from_state_dict
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.spec import InvalidSpec

_EXPECTED_TYPES: dict[str, tuple[type[torch.nn.Module], str]] = {
    "rnn": (torch.nn.RNNBase, "a torch.nn.RNN, GRU or LSTM"),
    "output": (torch.nn.Linear, "a torch.nn.Linear"),
    "convolution": (torch.nn.Conv1d, "a torch.nn.Conv1d or None"),
}


def from_torch(rnn: torch.nn.RNNBase, output: torch.nn.Linear, convolution: torch.nn.Conv1d | None = None) -> Network:
    """Returns a network on the CPU with a copy of the weights of torch.nn.RNN, GRU or LSTM and of a torch.nn.Linear.

    convolution: before the recurrent layers, causal and followed by relu; its padding must be 0 or width - 1 zeros, of
    which those on the left are used. Missing biases are zeros. Dropout is ignored. Raises InvalidSpec for what cannot
    be served: modules of other types, projections, half precision, numbers that are not finite, a convolution with
    strides, dilation or groups, and sizes that do not match.
    """
    _check_type("rnn", rnn)
    _check_type("output", output)
    modules: dict[str, torch.nn.Module] = {"rnn": rnn, "output": output}
    if convolution is not None:
        _check_type("convolution", convolution)
        _check_causal(convolution)
        modules["conv"] = convolution
    parameters = {}
    for part, module in modules.items():
        for name, tensor in module.state_dict().items():
            parameters[f"{part}.{name}"] = tensor
            bias = name.replace("weight", "bias", 1)
            if getattr(module, bias, None) is None and not torch.nn.parameter.is_lazy(tensor):
                parameters[f"{part}.{bias}"] = tensor.new_zeros(tensor.shape[:1])
    return from_state_dict(
        parameters, "relu" if rnn.mode == "RNN_RELU" else "tanh", causal_convolution=convolution is not None
    )


def _check_type(name: str, value: object) -> None:
    expected_type, expected = _EXPECTED_TYPES[name]
    if isinstance(value, expected_type):
        return
    found = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
    raise InvalidSpec(name, f"is {'None' if value is None else found}: expected {expected}{_advice(name, value)}")


def _advice(name: str, value: object) -> str:
    """Returns advice for a module of another type, after a semicolon."""
    if name == "output" and (value is None or isinstance(value, torch.nn.Identity)):
        return '; for hidden states alone pass a torch.nn.Linear(width, 1), and request "hidden" outputs'
    if isinstance(value, torch.nn.RNNCellBase) and name == "rnn":
        layer = type(value).__name__.removesuffix("Cell")
        return f'; a torch.nn.{layer} of one layer has the cell\'s four tensors, with "_l0" appended to their names'
    if isinstance(value, Mapping):
        return "; a state dict is for from_state_dict()"
    if isinstance(value, torch.nn.Module):
        inside = [path for path, module in value.named_modules() if isinstance(module, _EXPECTED_TYPES[name][0])]
        if len(inside) == 1:
            return f"; it has one as {inside[0]!r}: pass that, if nothing else in the module changes the outputs"
    return ""


def _check_causal(convolution: torch.nn.Conv1d) -> None:
    width = convolution.kernel_size[0]
    if convolution.padding == "same" and width > 1:
        raise InvalidSpec(
            "conv.weight",
            "belongs to a convolution with padding 'same', which sees future inputs: expected a causal one, trained "
            f"with {width - 1} zeros on the left only",
        )
    for name, expected in (
        ("stride", [(1,)]),
        ("dilation", [(1,)]),
        ("groups", [1]),
        ("padding", [(0,), (width - 1,), "valid", "same"]),
    ):
        found = getattr(convolution, name)
        if found not in expected:
            shown = " or ".join(str(value[0] if isinstance(value, tuple) else value) for value in expected[:2])
            raise InvalidSpec("conv.weight", f"belongs to a convolution with {name} {found!r}: expected {shown}")
    if convolution.padding_mode != "zeros":
        raise InvalidSpec(
            "conv.weight", f"belongs to a convolution that pads {convolution.padding_mode}: expected zeros"
        )
