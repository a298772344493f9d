"""The results of training calls: gradients, the results of a run's calls, and the description of a run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from seqloom._training.optimizers import Optimizer
from seqloom.tensors import Array
from seqloom.types import BreakableInfo, ModelSpec, ShortRepr, State, Timing


@dataclass(frozen=True, slots=True)
class FactoredGradient:
    """The gradient of one parameter in factors: left' right, of left [K, R] and right [K, C].

    If right is None, it is the sum of left's rows. shape: the parameter's.
    """

    left: Array
    right: Array | None
    shape: tuple[int, ...]

    def multiply(self) -> Array:
        """Returns the gradient."""
        gradient: Array
        if self.right is None:
            gradient = self.left.sum(0, dtype=np.float64).astype(self.left.dtype)
        else:
            gradient = self.left.T @ self.right
        return gradient.reshape(self.shape)


class ParameterGradients(Mapping[str, Array]):
    """Maps each parameter's name to its gradient, of the parameter's shape.

    A gradient that was sent in factors is multiplied on the first access, and kept.
    """

    def __init__(self, dense: dict[str, Array], factored: dict[str, FactoredGradient]) -> None:
        self._dense = dense
        self._factored = factored

    def __getitem__(self, name: str) -> Array:
        if name not in self._dense:
            self._dense[name] = self._factored[name].multiply()
        return self._dense[name]

    def __contains__(self, name: object) -> bool:
        return name in self._dense or name in self._factored

    def __iter__(self) -> Iterator[str]:
        return iter({**self._factored, **self._dense})

    def __len__(self) -> int:
        return len(self._factored.keys() | self._dense.keys())

    def __repr__(self) -> str:
        return f"ParameterGradients({', '.join(self)})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Gradients(ShortRepr):
    """The result of `gradients` for N sequences, in their order. Fields that were not requested in `wrt` are None.

    loss: the sum of losses. losses: one for each sequence, [N] float64. parameters: gradients by parameter name, each
    of its parameter's shape. factors: for gradients that were sent in factors, (left [K, R], right [K, C] or None): the
    gradient is left' right, or the sum of left's rows. norms: by parameter name, if parameter_form is "norms". inputs:
    dL/dx_t, [T_i, D] each. outputs: dL/do_t, [T_i, O] each. hidden: dL/ds_t of the top layer, [T_i, H] each.
    initial_state: dL/ds_0. final_state: the hidden state after each sequence's last step, not a gradient.
    weights_version: of the weights that the gradients were computed with.
    """

    loss: float
    losses: Array
    parameters: Mapping[str, Array] | None
    factors: Mapping[str, tuple[Array, Array | None]]
    norms: dict[str, float] | None
    inputs: list[Array] | None
    outputs: list[Array] | None
    hidden: list[Array] | None
    initial_state: State | None
    final_state: State | None
    weights_version: int
    timing: Timing


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ForwardBackwardResult(ShortRepr):
    """The result of `forward_backward` for N sequences.

    loss: the sum of losses. losses: one for each sequence, [N] float64. step: the number of the optimizer step that
    will apply this gradient. durable_step: the last step that is safe from a failure of the server.
    """

    loss: float
    losses: Array
    step: int
    durable_step: int
    timing: Timing


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of an optimizer step.

    step: its number, from 1. gradient_norm: norm of the accumulated gradient, before clipping. durable_step: the last
    step that is safe from a failure of the server.
    """

    step: int
    gradient_norm: float
    durable_step: int

    @property
    def step_number(self) -> int:
        """The same as `step`."""
        return self.step


@dataclass(frozen=True, slots=True, repr=False)
class RunInfo(BreakableInfo):
    """A training run on the server.

    weights_version: the version of the model's weights that the run started from. step: the number of steps applied.
    durable_step: the last step that is safe from a failure of the server. loss: of the last forward_backward; None
    before the first. accumulated_calls: forward_backward calls that the next step applies. checkpoints: their names.
    waiting_for: a description of what the run waits for; "" if it does not wait.

    broken: why the run cannot be loaded; "" if it can. Of a broken run only the id is known: numbers are 0, and its
    spec and optimizer raise InvalidArgument.
    """

    id: str
    model: str
    _spec: ModelSpec | None
    weights_version: int
    _optimizer: Optimizer | None
    clip_norm: float | None
    checkpoint_interval: int
    step: int
    durable_step: int
    loss: float | None
    accumulated_calls: int
    checkpoints: tuple[str, ...]
    waiting_for: str
    broken: str = ""

    @property
    def spec(self) -> ModelSpec:
        """The model's specification. Raises InvalidArgument, with the reason RUN_BROKEN, if the run is broken."""
        if self._spec is None:
            raise self._broken_error(f"run {self.id}", "RUN_BROKEN")
        return self._spec

    @property
    def optimizer(self) -> Optimizer:
        """The run's optimizer. Raises InvalidArgument, with the reason RUN_BROKEN, if the run is broken."""
        if self._optimizer is None:
            raise self._broken_error(f"run {self.id}", "RUN_BROKEN")
        return self._optimizer
