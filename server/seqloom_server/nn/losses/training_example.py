"""The data classes of a training call: its examples, sequences with targets, and the gradients that it requests."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
LossKind = Literal["cross_entropy", "mse", "ctc"]
ParameterForm = Literal["none", "smallest", "dense", "norms"]


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One sequence of a call, of at least one step; arrays of the model's data type, which may be read-only.

    xs: [T, D]. loss: None if output_gradients, dL/do [T, O], are given instead of targets. targets: int32 [T] for
    cross_entropy, -100 for steps to ignore; [T, O] for mse; int32 [L] for ctc, without the blank 0, and T >= L +
    repeats. scale: multiplies the loss and its gradients. initial_state, final_state_gradient: [rows, 1, width] for
    each part of spec.state_shapes(); None for zeros.
    """

    xs: Array
    loss: LossKind | None
    targets: Array | None
    output_gradients: Array | None
    scale: float
    initial_state: tuple[Array, ...] | None
    final_state_gradient: tuple[Array, ...] | None


@dataclass(frozen=True, slots=True)
class GradientRequest:
    """What a call asks for beside its losses.

    parameters: the form of its own gradients of the parameters. inputs: dL/dx_t. initial_state: dL/ds_0. outputs:
    dL/do_t. hidden: dL/ds_t of the top layer. final_state: s_T.
    """

    parameters: ParameterForm = "none"
    inputs: bool = False
    initial_state: bool = False
    outputs: bool = False
    hidden: bool = False
    final_state: bool = False


class GradientCall(Protocol):
    """What one caller wants differentiated: at least one sequence of at least one step."""

    @property
    def examples(self) -> list[Example]: ...

    @property
    def request(self) -> GradientRequest: ...


def stack_rows(arrays: list[Array], out: torch.Tensor) -> torch.Tensor:
    """Copies the concatenated arrays to `out`, and returns it."""
    if out.device.type == "cpu":
        np.concatenate(arrays, out=out.numpy())
    else:
        out.copy_(torch.from_numpy(np.concatenate(arrays)))
    return out
