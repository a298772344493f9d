"""Networks from torch.nn modules and from their state dicts."""

from collections.abc import Mapping
from typing import Literal, cast

import torch

from seqloom_server.nn.network import Network
from seqloom_server.nn.spec import Activation, InvalidSpec, ModelSpec, cell_of_gates


def from_torch(rnn: torch.nn.RNNBase, output: torch.nn.Linear, convolution: torch.nn.Conv1d | None = None) -> Network:
    """Returns a network on the CPU with a copy of the weights of torch.nn.RNN, GRU or LSTM and of a torch.nn.Linear.

    convolution: in front, causal and followed by relu: what it pads must be zeros, none or width - 1 of them, of which
    those on the left are what counts. Biases that a module does not have are zeros. Dropout is for training, and left
    out. Raises InvalidSpec for what cannot be served: projections, half precision, a convolution with strides, gaps or
    groups, sizes that do not fit together.
    """
    if rnn.proj_size:
        raise InvalidSpec("cell", f"has projections of {rnn.proj_size}: expected none")
    modules: dict[str, torch.nn.Module] = {"rnn": rnn, "output": output}
    if convolution is not None:
        _check_causal(convolution)
        modules["conv"] = convolution
    parameters = {
        f"{part}.{name}": tensor for part, module in modules.items() for name, tensor in module.state_dict().items()
    }
    activation = rnn.nonlinearity if isinstance(rnn, torch.nn.RNN) else "tanh"
    return from_state_dict(parameters, cast(Activation, activation))


def from_state_dict(parameters: Mapping[str, torch.Tensor], activation: Activation = "tanh") -> Network:
    """Returns a network on the CPU with a copy of a state dict whose names begin with "conv.", "rnn." and "output.".

    The cell and the sizes are read off names and shapes; only Elman's activation cannot be. Raises InvalidSpec.
    """
    for name in ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "output.weight"):
        if name not in parameters or parameters[name].dim() != 2:
            raise InvalidSpec(name, "is not there as a matrix")
    first, recurrent, last = (parameters[name] for name in ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "output.weight"))
    gates, rest = divmod(recurrent.shape[0], max(1, recurrent.shape[1]))
    cell = cell_of_gates(gates)
    if rest or cell is None:
        raise InvalidSpec("rnn.weight_hh_l0", f"has shape {list(recurrent.shape)}: of no elman, gru or lstm")
    dtype = str(first.dtype).removeprefix("torch.")
    kernel = parameters.get("conv.weight")
    if kernel is not None and kernel.dim() != 3:
        raise InvalidSpec("conv.weight", f"has shape {list(kernel.shape)}: expected [channels, input_size, width]")
    channels, width, conv_width = (0, first.shape[1], 0) if kernel is None else kernel.shape
    bidirectional = "rnn.weight_hh_l0_reverse" in parameters
    layers = sum(name.startswith("rnn.weight_hh_l") and not name.endswith("_reverse") for name in parameters)
    spec = ModelSpec(
        cell=cell,
        activation=activation,
        input_size=width,
        hidden_size=recurrent.shape[1],
        output_size=last.shape[0],
        num_layers=layers,
        conv_channels=channels,
        conv_width=conv_width,
        bidirectional=bidirectional,
        dtype=cast(Literal["float32", "float64"], dtype),
    )
    shapes = spec.parameter_shapes()
    for name in parameters:
        if name not in shapes:
            raise InvalidSpec(name, f"belongs to no {spec.num_layers}-layer {cell}")
    copies = {}
    for name, shape in shapes.items():
        if name not in parameters and ".bias" in name:
            copies[name] = first.new_zeros(shape)
            continue
        if name not in parameters:
            raise InvalidSpec(name, "is missing")
        tensor = parameters[name]
        if tuple(tensor.shape) != shape or tensor.dtype != first.dtype:
            raise InvalidSpec(name, f"is {tensor.dtype} {list(tensor.shape)}: expected {first.dtype} {list(shape)}")
        copies[name] = tensor.detach().cpu().clone()
    return Network(spec, copies, "cpu")


def _check_causal(convolution: torch.nn.Conv1d) -> None:
    width = convolution.kernel_size[0]
    for name, expected in (
        ("stride", [(1,)]),
        ("dilation", [(1,)]),
        ("groups", [1]),
        ("padding", [(0,), (width - 1,)]),
    ):
        found = getattr(convolution, name)
        if found not in expected:
            shown = " or ".join(str(each[0] if isinstance(each, tuple) else each) for each in expected)
            raise InvalidSpec("conv.weight", f"belongs to a convolution with {name} {found!r}: expected {shown}")
    if convolution.padding_mode != "zeros":
        raise InvalidSpec(
            "conv.weight", f"belongs to a convolution that pads {convolution.padding_mode}: expected zeros"
        )
