"""A network on the server as a torch.nn.Module, whose forward and backward are calls to the server.

    remote = seqloom.torch.RemoteNetwork(client, "digits")
    logits = remote([cnn(x1), cnn(x2)])
    loss(logits).backward()          # reaches the layers of cnn

The only module of the SDK that needs torch (the extra `torch`).
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from seqloom._blocking.blocking_client import Client
from seqloom._training.gradient_call import WithRespectTo
from seqloom.errors import InvalidArgument
from seqloom.tensors import Array
from seqloom.types import ModelSpec, State

__all__ = ["RemoteNetwork"]


class RemoteNetwork(torch.nn.Module):
    """A served network as a torch module: local layers before and after it can be trained through it.

    client: a blocking seqloom.Client. weights_version: the required version of the weights; None for those that are
    served at each forward. A backward uses the version of its forward, and raises VersionMismatch if others have been
    published since: repeat the forward then. parameter_gradients: whether backward adds the gradients of the network's
    own parameters to the attribute `parameter_gradients`, by name; zero_grad() clears them.

    It cannot be differentiated twice. forward and backward raise the errors of the calls, seqloom.SeqloomError.
    """

    def __init__(
        self, client: Client, model: str, *, weights_version: int | None = None, parameter_gradients: bool = False
    ) -> None:
        super().__init__()
        self.spec: ModelSpec = client.model(model).spec
        self.parameter_gradients: dict[str, torch.Tensor] | None = {} if parameter_gradients else None
        self._client = client
        self._model = model
        self._weights_version = weights_version

    def forward(
        self,
        xs: torch.Tensor | Sequence[torch.Tensor],
        lengths: torch.Tensor | Sequence[int] | None = None,
        initial_state: torch.Tensor | Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor | list[torch.Tensor]:
        """Returns the logits, in the layout of xs, with the model's dtype, on the device of xs.

        xs: N tensors [T_i, D], for a list of N tensors [T_i, O]; or one padded tensor [N, T, D] with lengths [N] (None
        if all are T), for one tensor [N, T, O], 0 beyond the lengths. initial_state: hidden [L, N, H], or a tuple of
        the parts of seqloom.State that the model has: hidden, the cell of an LSTM, the inputs of a convolution; None
        for zeros.
        """
        padded = isinstance(xs, torch.Tensor)
        counts = _padded_lengths(xs, lengths) if isinstance(xs, torch.Tensor) else _list_lengths(xs, lengths)
        dtype = getattr(torch, self.spec.dtype)
        if isinstance(xs, torch.Tensor):
            valid = torch.arange(xs.shape[1], device=xs.device) < torch.tensor(counts, device=xs.device)[:, None]
            rows = xs[valid]
        else:
            rows = torch.cat(list(xs))
        given = () if initial_state is None else initial_state
        state = (given,) if isinstance(given, torch.Tensor) else tuple(given)
        anchor = torch.zeros((), requires_grad=self.parameter_gradients is not None)
        outputs: torch.Tensor = _RemoteCall.apply(  # type: ignore[no-untyped-call]
            self, counts, anchor, rows.to(dtype), *(part.to(dtype) for part in state)
        )
        if not padded:
            return list(torch.split(outputs, counts))
        logits = outputs.new_zeros((*valid.shape, outputs.shape[1]))
        return logits.masked_scatter(valid[..., None], outputs)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears parameter_gradients."""
        super().zero_grad(set_to_none)
        if self.parameter_gradients is not None:
            self.parameter_gradients = {}

    def extra_repr(self) -> str:
        return f"{self._model!r}, {self.spec}"

    def _infer(self, counts: list[int], rows: torch.Tensor, state: Sequence[torch.Tensor]) -> tuple[torch.Tensor, int]:
        result = self._client.infer(
            self._model,
            _arrays(rows, counts),
            initial_state=self._state(state),
            weights_version=self._weights_version,
        )
        return torch.cat([torch.tensor(output) for output in result.outputs]), result.weights_version

    def _gradients(
        self,
        counts: list[int],
        rows: torch.Tensor,
        state: Sequence[torch.Tensor],
        output_gradients: torch.Tensor,
        version: int,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        wrt: list[WithRespectTo] = ["inputs"]
        if state:
            wrt.append("initial_state")
        if self.parameter_gradients is not None:
            wrt.append("parameters")
        gradients = self._client.gradients(
            self._model,
            _arrays(rows, counts),
            output_gradients=_arrays(output_gradients, counts),
            initial_state=self._state(state),
            wrt=wrt,
            weights_version=version,
        )
        if self.parameter_gradients is not None:
            for name, gradient in (gradients.parameters or {}).items():
                held = self.parameter_gradients.get(name)
                added = torch.from_numpy(gradient)
                self.parameter_gradients[name] = added if held is None else held + added
        into_state = [] if gradients.initial_state is None else self._parts(gradients.initial_state)
        return torch.cat([torch.from_numpy(each) for each in gradients.inputs or []]), into_state

    def _state(self, parts: Sequence[torch.Tensor]) -> State | None:
        if not parts:
            return None
        names = self._part_names()
        if len(parts) != len(names):
            raise InvalidArgument(f"initial_state: has {len(parts)} tensors: expected {', '.join(names)}")
        return State(**{name: _array(part) for name, part in zip(names, parts, strict=True)})

    def _parts(self, state: State) -> list[torch.Tensor]:
        return [torch.from_numpy(getattr(state, name)) for name in self._part_names()]

    def _part_names(self) -> list[str]:
        return list(self.spec.state_shapes())


class _Context(Protocol):
    """The context that torch passes from a forward to its backward."""

    remote: RemoteNetwork
    counts: list[int]
    version: int
    saved_tensors: tuple[torch.Tensor, ...]

    def save_for_backward(self, *tensors: torch.Tensor) -> None: ...


class _RemoteCall(torch.autograd.Function):
    """The call as an autograd function of rows, [sum of lengths, D], that returns logits, [sum of lengths, O]."""

    @staticmethod
    def forward(
        ctx: _Context,
        remote: RemoteNetwork,
        counts: list[int],
        anchor: torch.Tensor,
        rows: torch.Tensor,
        *state: torch.Tensor,
    ) -> torch.Tensor:
        logits, ctx.version = remote._infer(counts, rows, state)
        ctx.remote, ctx.counts = remote, counts
        ctx.save_for_backward(rows, *state)
        return logits.to(rows.device)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Context, output_gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, *state = ctx.saved_tensors
        inputs, into_state = ctx.remote._gradients(ctx.counts, rows, state, output_gradients, ctx.version)
        into_state = [gradient.to(part.device) for gradient, part in zip(into_state, state, strict=True)]
        return None, None, torch.zeros(()), inputs.to(rows.device), *into_state


def _list_lengths(xs: Sequence[torch.Tensor], lengths: object) -> list[int]:
    if lengths is not None:
        raise InvalidArgument("lengths: expected None with a list of tensors, which has its own lengths")
    if not len(xs):
        raise InvalidArgument("xs: is empty: expected at least one sequence")
    return [len(x) for x in xs]


def _padded_lengths(xs: torch.Tensor, lengths: torch.Tensor | Sequence[int] | None) -> list[int]:
    if xs.ndim != 3:
        raise InvalidArgument(f"xs: has shape {list(xs.shape)}: expected [N, T, D], or a list of [T, D]")
    count, steps = xs.shape[:2]
    if lengths is None:
        return [steps] * count
    given = [int(length) for length in lengths]
    if len(given) != count or not all(1 <= length <= steps for length in given):
        raise InvalidArgument(f"lengths: are {given[:8]}: expected {count} lengths from 1 to {steps}")
    return given


def _arrays(rows: torch.Tensor, counts: list[int]) -> list[Array]:
    return [_array(part) for part in torch.split(rows, counts)]


def _array(tensor: torch.Tensor) -> Array:
    return tensor.detach().cpu().numpy()
