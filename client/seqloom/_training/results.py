"""What training gives back: gradients, and what a run says of its calls and of itself."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from seqloom._training.optimizers import Optimizer
from seqloom.tensors import Array
from seqloom.types import Described, ModelSpec, ShortRepr, State, Timing


@dataclass(frozen=True, slots=True)
class Product:
    """The gradient of one parameter as left' right, of [K, R] and [K, C]; the sum of left's rows where right is None.

    shape: of the parameter.
    """

    left: Array
    right: Array | None
    shape: tuple[int, ...]

    def value(self) -> Array:
        """Multiplies."""
        gradient: Array
        if self.right is None:
            gradient = self.left.sum(0, dtype=np.float64).astype(self.left.dtype)
        else:
            gradient = self.left.T @ self.right
        return gradient.reshape(self.shape)


class ParameterGradients(Mapping[str, Array]):
    """The gradient of each parameter by its name, of the parameter's shape.

    Those that came as factors are multiplied when they are looked at first, and kept.
    """

    def __init__(self, dense: dict[str, Array], products: dict[str, Product]) -> None:
        self._dense = dense
        self._products = products

    def __getitem__(self, name: str) -> Array:
        if name not in self._dense:
            self._dense[name] = self._products[name].value()
        return self._dense[name]

    def __contains__(self, name: object) -> bool:
        return name in self._dense or name in self._products

    def __iter__(self) -> Iterator[str]:
        return iter({**self._products, **self._dense})

    def __len__(self) -> int:
        return len(self._products.keys() | self._dense.keys())

    def __repr__(self) -> str:
        return f"ParameterGradients({', '.join(self)})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Gradients(ShortRepr):
    """What `gradients` returns for N sequences, in their order; None for what was not asked for.

    loss: the sum of losses, [N] float64. parameters: by name, each of its parameter's shape. factors: of those that
    travelled as factors, (left [K, R], right [K, C] or None): the gradient is left' right, or the sum of left's rows.
    norms: by parameter, for parameter_form="norms". inputs: dL/dx_t, [T_i, D] each; outputs: dL/do_t, [T_i, O] each;
    hidden: dL/ds_t of the top layer, [T_i, H] each. initial_state: dL/ds_0. final_state: no gradient, the state after
    each sequence's last step. All of it belongs to the weights of `weights_version`.
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
    """What was accumulated by one call.

    loss: the sum of losses, [N] float64. step: the number of the step that this gradient goes into. durable_step: the
    last step that the server would not lose.
    """

    loss: float
    losses: Array
    step: int
    durable_step: int
    timing: Timing


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step that was applied.

    step: its number, from 1. gradient_norm: of what was accumulated, before it was clipped. durable_step: the last step
    that the server would not lose.
    """

    step: int
    gradient_norm: float
    durable_step: int

    @property
    def step_number(self) -> int:
        """Another name of `step`."""
        return self.step


@dataclass(frozen=True, slots=True, repr=False)
class RunInfo(Described):
    """A run as the server has it.

    weights_version: the model's that it was forked from. step: steps applied. durable_step: the last that the server
    would not lose. loss: of the last forward_backward that was accumulated, None before the first. accumulated_calls:
    what the next step applies. checkpoints: their names. waiting_for: what it waits for, in words, "" for nothing.

    broken: why its folder cannot be loaded, in words, "" for a run that is alive. Of a broken one nothing else is known
    but its id: numbers are 0, and to ask for its spec or optimizer raises InvalidArgument.
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
        """The model's specification. Raises InvalidArgument, with the reason RUN_BROKEN, where nobody knows."""
        if self._spec is None:
            raise self._unknown(f"run {self.id}", "RUN_BROKEN")
        return self._spec

    @property
    def optimizer(self) -> Optimizer:
        """What it was made with. Raises InvalidArgument, with the reason RUN_BROKEN, where nobody knows."""
        if self._optimizer is None:
            raise self._unknown(f"run {self.id}", "RUN_BROKEN")
        return self._optimizer
