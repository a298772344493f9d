"""A network on a device: runs the forward pass of many sequences and steps at once, over packed rows."""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping
from typing import Self

import torch

from seqloom_server.nn.forward import causal_conv, outputs, precision
from seqloom_server.nn.forward.cpu_layers import HALF, CpuLayers
from seqloom_server.nn.forward.cudnn_layers import CudnnLayers
from seqloom_server.nn.forward.int8_layers import Int8Layers
from seqloom_server.nn.forward.int8_linear import Int8Linear
from seqloom_server.nn.forward.packed_linear import PackedLinear
from seqloom_server.nn.forward.product_choice import choices
from seqloom_server.nn.spec import Activation, Cell, ModelSpec, OutputKind

State = tuple[torch.Tensor, ...]

_FORWARD: dict[tuple[Cell, Activation], Callable[..., tuple[torch.Tensor, ...]]] = {
    ("elman", "tanh"): torch.rnn_tanh,
    ("elman", "relu"): torch.rnn_relu,
    ("gru", "tanh"): torch.gru,
    ("lstm", "tanh"): torch.lstm,
}


_NOTHING = contextlib.nullcontext()


def _inference_mode() -> contextlib.AbstractContextManager[None]:
    """Returns inference mode; nothing where it is on already: entering it takes a tenth of a small slice's time."""
    return _NOTHING if torch.is_inference_mode_enabled() else torch.inference_mode()


class Network:
    """The weights of one model on one device, and the forward pass with them.

    products: a context that sets the network's precision for launches on a GPU; no effect on the CPU. parameters: every
    tensor of spec.parameter_shapes(); not copied if dtype, device and layout are right already. Raises ValueError if
    one is missing, unknown or of another shape.
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
            precision.allow_tf32(False)  # on by default for some products, with only three digits
        self.products = precision.products(spec.precision, self.device)
        self._conv = (ready["conv.weight"], ready["conv.bias"]) if spec.conv_channels else None
        self._rnn = recurrent_module(spec, "meta")
        self._rnn.load_state_dict(
            {name.removeprefix("rnn."): tensor for name, tensor in ready.items() if name.startswith("rnn.")},
            assign=True,
        )
        self._rnn.requires_grad_(False).eval()
        self._rnn.flatten_parameters()  # cuDNN needs one buffer; does nothing on the CPU
        self._flat = [weight for layer in self._rnn.all_weights for weight in layer]
        self._weight, self._bias = ready["output.weight"], ready["output.bias"]
        self._forward = _FORWARD[spec.cell, spec.activation]

    # Made at the first use: a network that is only trained needs no copies, which would not follow its weights.

    @functools.cached_property
    def _layers(self) -> CpuLayers | CudnnLayers | Int8Layers | None:
        """The implementation of the recurrent layers; None for torch's own, over packed rows in full precision."""
        spec = self.spec
        if spec.precision == "int8":
            return Int8Layers(spec, self.parameters())
        if self.device.type == "cuda":
            return CudnnLayers(spec, self._rnn, self._forward)
        if spec.precision == "bf16":
            return CpuLayers(spec, self.parameters(), HALF)
        # torch's own call is faster for LSTMs
        if spec.cell != "lstm" and choices.packs(self.parameters()["rnn.weight_hh_l0"]):
            return CpuLayers(spec, self.parameters(), torch.float32)
        return None

    @functools.cached_property
    def _int8_conv(self) -> Int8Linear | None:
        """The convolution of a network in int8: in float32 a row's sums depend on the number of rows."""
        if self._conv is None or self.spec.precision != "int8":
            return None
        return Int8Linear(self._conv[0].flatten(1), self._conv[1], "rows")

    @functools.cached_property
    def _output(self) -> PackedLinear | Int8Linear:
        if self.spec.precision == "int8":
            return Int8Linear(self._weight, self._bias, "states")
        dtype = HALF if self.spec.precision == "bf16" else self._weight.dtype
        return PackedLinear(self._weight.to(dtype), self._bias.to(dtype))

    @classmethod
    def create(cls, spec: ModelSpec, seed: int, device: torch.device | str = "cpu") -> Self:
        """Returns a network with torch.nn's default initialisation from `seed`, the same on every device.

        The numbers equal those of torch.manual_seed(seed), then torch.nn.Conv1d if there is a convolution, then the
        recurrent module, then torch.nn.Linear.
        """
        generator = torch.Generator().manual_seed(seed)
        # torch.nn bounds the weights of recurrent layers by their units, of others by the inputs of each unit
        fans = {
            "conv": spec.input_size * spec.conv_width,
            "rnn": spec.hidden_size,
            "output": spec.outputs_width,
        }
        parameters = {}
        for name, shape in spec.parameter_shapes().items():
            bound = 1 / math.sqrt(fans[name.partition(".")[0]])
            tensor = torch.empty(shape, dtype=getattr(torch, spec.dtype))
            parameters[name] = tensor.uniform_(-bound, bound, generator=generator)
        return cls(spec, parameters, device)

    def advance(self, rows: torch.Tensor, batch_sizes: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Advances N sequences, each by its own number of steps; returns (hidden, new state).

        rows: [cells, D], packed: time-major, sequences longest first, step t has the first batch_sizes[t] sequences.
        batch_sizes: int64 [T] on the CPU, descending from N, none 0. state: [rows, N, width] per part of
        spec.state_shapes(). hidden: [cells, spec.outputs_width], the top layer's s_t, packed in the same way. For a
        bidirectional network the steps must be all steps of its sequences.

        torch.nn's modules do the same; their checks and PackedSequence cost 40 to 60 microseconds more a call, a fifth
        of the time for 64 sequences, 10 steps and 64 units.
        """
        spec = self.spec
        recurrent, inputs = (state, ()) if spec.conv_width < 2 else (state[:-1], state[-1:])
        before = recurrent if len(recurrent) > 1 else recurrent[0]
        with _inference_mode():
            if self._conv is not None:
                rows, inputs = self._convolve(rows, batch_sizes, inputs)
            after: State
            if self._layers is not None:
                hidden, after = self._layers.advance(rows, batch_sizes, recurrent)
            else:
                hidden, *last = self._forward(
                    rows, batch_sizes, before, self._flat, True, spec.num_layers, 0.0, False, spec.bidirectional
                )
                after = tuple(last)
        return hidden, (*after, *inputs)

    def _convolve(self, rows: torch.Tensor, batch_sizes: torch.Tensor, inputs: State) -> tuple[torch.Tensor, State]:
        """Returns the convolution's outputs, [cells, C], and the new state part "inputs", [width - 1, N, D]."""
        assert self._conv is not None
        weight, bias = self._conv
        unfolding = causal_conv.Unfolding(batch_sizes.numpy(), self.spec.conv_width, self.device)
        source = unfolding.source(rows, *inputs)
        convolved = rows.new_empty(len(rows), len(weight))
        most = outputs.chunk_rows(weight[0].numel(), weight.element_size())
        for start in range(0, len(rows), most):
            stop = min(start + most, len(rows))
            columns = unfolding.columns(source, start, stop)
            if self._int8_conv is not None:
                torch.clamp_min(self._int8_conv(columns), 0, out=convolved[start:stop])
            else:
                causal_conv.forward(columns, weight, bias, out=convolved[start:stop])
        return convolved, (unfolding.final_inputs(source),) if inputs else ()

    def outputs(
        self, hidden: torch.Tensor, kind: OutputKind, top_k: int = 0
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Returns (values, labels) of hidden states [rows, spec.outputs_width]; see outputs.outputs()."""
        with _inference_mode():
            return outputs.outputs(hidden, self._output, kind, top_k)

    def parameters(self) -> dict[str, torch.Tensor]:
        """Returns the weights on the device, not copies, by the names of spec.parameter_shapes().

        From their first call on, advance() and outputs() may use copies, which do not follow later writes.
        """
        first = {} if self._conv is None else {"conv.weight": self._conv[0], "conv.bias": self._conv[1]}
        named = {f"rnn.{name}": parameter.detach() for name, parameter in self._rnn.named_parameters()}
        return {**first, **named, "output.weight": self._weight, "output.bias": self._bias}

    @property
    def nbytes(self) -> int:
        """Bytes of the weights on the device, including copies of another precision or layout."""
        # from __dict__, so that the cached properties are not computed
        layers, output, conv = (self.__dict__.get(name) for name in ("_layers", "_output", "_int8_conv"))
        copies = (0 if layers is None else layers.nbytes) + (0 if conv is None else conv.packed_bytes)
        if output is not None:
            halved = output.itemsize != self._weight.element_size()
            copies += output.packed_bytes or halved * output.itemsize * self._weight.numel()
        return copies + sum(tensor.nbytes for tensor in self.parameters().values())


def recurrent_module(spec: ModelSpec, device: torch.device | str) -> torch.nn.RNNBase:
    """Returns torch.nn's module of the recurrent layers, with its weights not set."""
    sizes = (spec.conv_channels or spec.input_size, spec.hidden_size, spec.num_layers)
    dtype, both = getattr(torch, spec.dtype), spec.bidirectional
    if spec.cell == "elman":
        activation = spec.activation
        return torch.nn.RNN(*sizes, nonlinearity=activation, bidirectional=both, device=device, dtype=dtype)
    module = torch.nn.GRU if spec.cell == "gru" else torch.nn.LSTM
    return module(*sizes, bidirectional=both, device=device, dtype=dtype)
