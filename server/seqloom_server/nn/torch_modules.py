"""Networks from torch.nn modules and from their state dicts."""

from collections.abc import Mapping
from typing import Literal, cast

import torch

from seqloom_server.nn.network import Network
from seqloom_server.nn.spec import Activation, InvalidSpec, ModelSpec, cell_of_gates


def from_torch(rnn: torch.nn.RNNBase, output: torch.nn.Linear) -> Network:
    """Returns a network on the CPU with a copy of the weights of torch.nn.RNN, GRU or LSTM and of a torch.nn.Linear.

    Biases that a module does not have are zeros. Dropout is for training, and left out. Raises InvalidSpec for what
    cannot be served: bidirectional layers, projections, half precision, sizes that do not fit together.
    """
    if rnn.bidirectional:
        raise InvalidSpec("cell", "is bidirectional: expected layers that run forward only")
    if rnn.proj_size:
        raise InvalidSpec("cell", f"has projections of {rnn.proj_size}: expected none")
    parameters = {f"rnn.{name}": tensor for name, tensor in rnn.state_dict().items()}
    parameters |= {f"output.{name}": tensor for name, tensor in output.state_dict().items()}
    activation = rnn.nonlinearity if isinstance(rnn, torch.nn.RNN) else "tanh"
    return from_state_dict(parameters, cast(Activation, activation))


def from_state_dict(parameters: Mapping[str, torch.Tensor], activation: Activation = "tanh") -> Network:
    """Returns a network on the CPU with a copy of a state dict whose names begin with "rnn." and "output.".

    The cell and the sizes are read off the shapes; only Elman's activation cannot be. Raises InvalidSpec.
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
    spec = ModelSpec(
        cell=cell,
        activation=activation,
        input_size=first.shape[1],
        hidden_size=recurrent.shape[1],
        output_size=last.shape[0],
        num_layers=sum(name.startswith("rnn.weight_hh_l") for name in parameters),
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
