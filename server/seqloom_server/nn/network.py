"""A network on a device: advances many sequences by many steps in one call of torch, over packed rows."""

import math
from collections.abc import Callable, Mapping
from typing import Self

import torch

from seqloom_server.nn import outputs
from seqloom_server.nn.spec import Activation, Cell, ModelSpec, OutputKind

State = tuple[torch.Tensor, ...]

_FORWARD: dict[tuple[Cell, Activation], Callable[..., tuple[torch.Tensor, ...]]] = {
    ("elman", "tanh"): torch.rnn_tanh,
    ("elman", "relu"): torch.rnn_relu,
    ("gru", "tanh"): torch.gru,
    ("lstm", "tanh"): torch.lstm,
}


class Network:
    """The weights of one model on one device, and the forward pass through them.

    parameters: every tensor that spec.parameter_shapes() names; taken over, not copied, where dtype, device and layout
    are right already. Raises ValueError where one is missing, extra or misshapen.
    """

    def __init__(self, spec: ModelSpec, parameters: Mapping[str, torch.Tensor], device: torch.device | str) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
        if shapes != spec.parameter_shapes():
            raise ValueError(f"the parameters have shapes {shapes}: expected {spec.parameter_shapes()}")
        self.spec = spec
        self.device = torch.device(device)
        dtype = getattr(torch, spec.dtype)
        ready = {name: tensor.detach().to(self.device, dtype).contiguous() for name, tensor in parameters.items()}
        if self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # on by default, and good for three digits only
        self._rnn = recurrent_module(spec, "meta")
        self._rnn.load_state_dict(
            {name.removeprefix("rnn."): tensor for name, tensor in ready.items() if name.startswith("rnn.")},
            assign=True,
        )
        self._rnn.requires_grad_(False).eval()
        self._rnn.flatten_parameters()  # cuDNN wants one buffer; elsewhere it does nothing
        self._flat = [weight for layer in self._rnn.all_weights for weight in layer]
        self._weight, self._bias = ready["output.weight"], ready["output.bias"]
        self._forward = _FORWARD[spec.cell, spec.activation]

    @classmethod
    def create(cls, spec: ModelSpec, seed: int, device: torch.device | str = "cpu") -> Self:
        """Returns a network with torch.nn's default initialisation, drawn from `seed` alone, whatever the device.

        The numbers are those of torch.manual_seed(seed), then the torch.nn module, then torch.nn.Linear(H, O).
        """
        generator = torch.Generator().manual_seed(seed)
        bound = 1 / math.sqrt(spec.hidden_size)
        parameters = {}
        for name, shape in spec.parameter_shapes().items():
            tensor = torch.empty(shape, dtype=getattr(torch, spec.dtype))
            parameters[name] = tensor.uniform_(-bound, bound, generator=generator)
        return cls(spec, parameters, device)

    def advance(self, rows: torch.Tensor, batch_sizes: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Runs N sequences on, each by its own number of steps; returns (hidden, state after).

        rows: [cells, D], packed: time-major, sequences longest first, so that step t is the first batch_sizes[t] of
        them. batch_sizes: int64 [T] on the CPU, from N down, none 0. state: [L, N, H] per part of the cell's state.
        hidden: [cells, H], the top layer's s_t, packed alike.

        torch.nn's modules do the same; their checks and PackedSequence cost 40 to 60 microseconds a call more, a fifth
        of the whole for 64 sequences, 10 steps and 64 units.
        """
        before = state if len(state) > 1 else state[0]
        with torch.inference_mode():
            hidden, *after = self._forward(
                rows, batch_sizes, before, self._flat, True, self.spec.num_layers, 0.0, False, False
            )
        return hidden, tuple(after)

    def outputs(
        self, hidden: torch.Tensor, kind: OutputKind, top_k: int = 0
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Returns (values, labels) of hidden states [rows, H]; see nn.outputs."""
        with torch.inference_mode():
            return outputs.outputs(hidden, self._weight, self._bias, kind, top_k)

    def parameters(self) -> dict[str, torch.Tensor]:
        """The weights themselves, on the device, by the names of spec.parameter_shapes()."""
        named = {f"rnn.{name}": parameter.detach() for name, parameter in self._rnn.named_parameters()}
        return {**named, "output.weight": self._weight, "output.bias": self._bias}

    @property
    def nbytes(self) -> int:
        """Bytes of the weights on the device."""
        return sum(tensor.nbytes for tensor in self.parameters().values())


def recurrent_module(spec: ModelSpec, device: torch.device | str) -> torch.nn.RNNBase:
    """Returns torch.nn's module of the recurrent part, its weights not yet set."""
    sizes = (spec.input_size, spec.hidden_size, spec.num_layers)
    dtype = getattr(torch, spec.dtype)
    if spec.cell == "elman":
        return torch.nn.RNN(*sizes, nonlinearity=spec.activation, device=device, dtype=dtype)
    module = torch.nn.GRU if spec.cell == "gru" else torch.nn.LSTM
    return module(*sizes, device=device, dtype=dtype)
