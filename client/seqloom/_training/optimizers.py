"""Optimizers of training runs, with the names and rules of torch.optim, and their protobuf messages."""

import math
from dataclasses import dataclass
from typing import TypeAlias

from seqloom.errors import InvalidArgument
from seqloom.v1 import training_service_pb2


@dataclass(frozen=True, slots=True)
class SGD:
    """Stochastic gradient descent, as torch.optim.SGD.

    lr: above 0. momentum: at least 0 and below 1. Raises InvalidArgument.
    """

    lr: float
    momentum: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "lr", positive_number(self.lr, "lr"))
        object.__setattr__(self, "momentum", _below_1(self.momentum, "momentum"))


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam, as torch.optim.Adam.

    lr and epsilon: above 0. betas: at least 0 and below 1. weight_decay: at least 0. Raises InvalidArgument.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_adam(self)


@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay, as torch.optim.AdamW. Arguments as of Adam. Raises InvalidArgument."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        _check_adam(self)


Optimizer: TypeAlias = SGD | Adam | AdamW


def optimizer_message(optimizer: Optimizer) -> training_service_pb2.Optimizer:
    """Returns the message of an optimizer. Raises InvalidArgument if it is none."""
    if isinstance(optimizer, SGD):
        return training_service_pb2.Optimizer(
            kind=training_service_pb2.OPTIMIZER_KIND_SGD, learning_rate=optimizer.lr, momentum=optimizer.momentum
        )
    if not isinstance(optimizer, Adam | AdamW):
        raise InvalidArgument(
            f"optimizer: is a {type(optimizer).__name__}: expected seqloom.SGD, seqloom.Adam or seqloom.AdamW"
        )
    adam = isinstance(optimizer, Adam)
    return training_service_pb2.Optimizer(
        kind=training_service_pb2.OPTIMIZER_KIND_ADAM if adam else training_service_pb2.OPTIMIZER_KIND_ADAMW,
        learning_rate=optimizer.lr,
        beta1=optimizer.betas[0],
        beta2=optimizer.betas[1],
        epsilon=optimizer.epsilon,
        weight_decay=optimizer.weight_decay,
    )


def optimizer_of(message: training_service_pb2.Optimizer) -> Optimizer:
    """Returns the optimizer of a message."""
    if message.kind == training_service_pb2.OPTIMIZER_KIND_SGD:
        return SGD(message.learning_rate, message.momentum)
    kind = Adam if message.kind == training_service_pb2.OPTIMIZER_KIND_ADAM else AdamW
    return kind(message.learning_rate, (message.beta1, message.beta2), message.epsilon, message.weight_decay)


def positive_number(value: object, name: str) -> float:
    """Returns `value` as a finite number above 0. Raises InvalidArgument for the argument `name`."""
    number = _finite_number(value)
    if number is None or number <= 0:
        raise InvalidArgument(f"{name}: is {value!r}: expected a finite number above 0")
    return number


def nonnegative_number(value: object, name: str) -> float:
    """Returns `value` as a finite number of at least 0. Raises InvalidArgument for the argument `name`."""
    number = _finite_number(value)
    if number is None or number < 0:
        raise InvalidArgument(f"{name}: is {value!r}: expected a finite number of at least 0")
    return number


def _finite_number(value: object) -> float | None:
    try:
        number = float(value) if not isinstance(value, bool | str) else math.nan  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _below_1(value: object, name: str) -> float:
    number = nonnegative_number(value, name)
    if number >= 1:
        raise InvalidArgument(f"{name}: is {value!r}: expected a number of at least 0 and below 1")
    return number


def _check_adam(optimizer: Adam | AdamW) -> None:
    object.__setattr__(optimizer, "lr", positive_number(optimizer.lr, "lr"))
    try:
        first, second = optimizer.betas
    except (TypeError, ValueError):
        raise InvalidArgument(f"betas: is {optimizer.betas!r}: expected two numbers") from None
    betas = tuple(_below_1(beta, f"betas[{i}]") for i, beta in enumerate((first, second)))
    object.__setattr__(optimizer, "betas", betas)
    object.__setattr__(optimizer, "epsilon", positive_number(optimizer.epsilon, "epsilon"))
    object.__setattr__(optimizer, "weight_decay", nonnegative_number(optimizer.weight_decay, "weight_decay"))
