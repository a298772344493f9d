"""The specification of an optimizer, SGD, Adam or AdamW, with checked hyperparameters, and its state's shapes."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from seqloom_server.nn.spec import InvalidSpec

OptimizerKind = Literal["sgd", "adam", "adamw"]
Shapes = dict[str, tuple[int, ...]]

STEP = "step"  # name of the tensor with the number of steps in an optimizer's state

_KINDS = ("sgd", "adam", "adamw")


@dataclass(frozen=True, slots=True)
class OptimizerSpec:
    """The hyperparameters of torch.optim's SGD (which has momentum), Adam or AdamW (which have betas and epsilon).

    Raises InvalidSpec, which names the field.
    """

    kind: OptimizerKind
    lr: float
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not (isinstance(self.kind, str) and self.kind in _KINDS):
            raise InvalidSpec("kind", f"is {self.kind!r:.80}: expected one of {', '.join(_KINDS)}")
        for field in ("lr", "epsilon"):
            check_positive(field, getattr(self, field))
        for field in ("momentum", "beta1", "beta2"):
            value = getattr(self, field)
            if not (is_finite_number(value) and 0 <= value < 1):
                raise InvalidSpec(field, f"is {value!r:.80}: expected a number from 0 to below 1")
        if not (is_finite_number(self.weight_decay) and self.weight_decay >= 0):
            raise InvalidSpec("weight_decay", f"is {self.weight_decay!r:.80}: expected a finite number of at least 0")
        if self.momentum and self.kind != "sgd":
            raise InvalidSpec("momentum", f"is {self.momentum!r}: only sgd has momentum, {self.kind} has beta1")

    @property
    def buffers(self) -> tuple[str, ...]:
        """The tensors kept for each parameter, by torch.optim's names."""
        if self.kind != "sgd":
            return ("exp_avg", "exp_avg_sq")
        return ("momentum_buffer",) if self.momentum else ()

    def state_shapes(self, parameters: Mapping[str, tuple[int, ...]]) -> Shapes:
        """Returns the shapes of Optimizer.state(): "exp_avg.output.bias" [O] and so on, and "step" [], an int64."""
        shapes = {f"{buffer}.{name}": shape for buffer in self.buffers for name, shape in parameters.items()}
        return {**shapes, STEP: ()}


def check_positive(field: str, value: object) -> None:
    """Raises InvalidSpec unless `value` is a finite number above 0."""
    if not (is_finite_number(value) and value > 0):  # type: ignore[operator]
        raise InvalidSpec(field, f"is {value!r:.80}: expected a finite number above 0")


def is_finite_number(value: object) -> bool:
    """Returns whether the value is an int or a float, but no bool, that is finite as a float."""
    # math.isfinite() raises for an int that is too large for a float
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
