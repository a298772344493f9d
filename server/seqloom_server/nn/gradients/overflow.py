"""What of a batch's gradients is not finite, and so an overflow: found by cheap bounds first, then number by number."""

import math
from collections.abc import Iterable

import numpy as np
import torch

from seqloom_server.nn.gradients.call_share import CallGradients
from seqloom_server.nn.losses.training_example import Array


def of_losses(losses: Array) -> str:
    """Returns which of a call's losses is not finite, "" where all and their sum are. losses: [N]."""
    infinite = np.flatnonzero(~np.isfinite(losses))
    if len(infinite):
        return f"the loss of sequence {infinite[0]}"
    return "" if math.isfinite(losses.sum()) else "the sum of the losses"


def of_gradients(call: CallGradients) -> str:
    """Returns which of a call's gradients is not finite, "" where all are. Its parameters' are to be dense."""
    infinite = (name for name, array in _arrays(call, with_parameters=True).items() if not np.isfinite(array).all())
    return next((f"the gradient of {name}" for name in infinite), "")


def is_finite(call: CallGradients, *, parameters_are: bool) -> bool:
    """Whether a call's results are finite for certain; False where only products of its factors would tell.

    parameters_are: whether the gradients of parameters are known to be.
    """
    if not parameters_are and (call.factors or not all(map(math.isfinite, (call.norms or {}).values()))):
        return False
    return all(np.isfinite(array).all() for array in _arrays(call, with_parameters=not parameters_are).values())


def are_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether every element is finite."""
    # a norm, which reads once, overflows a little before its elements do: then they are looked at
    return all(
        math.isfinite(float(torch.linalg.vector_norm(tensor))) or bool(tensor.isfinite().all()) for tensor in tensors
    )


def _arrays(call: CallGradients, with_parameters: bool) -> dict[str, Array]:
    named: dict[str, Array | None] = {"the inputs": call.inputs, "the outputs": call.outputs}
    named["the hidden states"] = call.hidden
    named |= {f"the initial state, part {part}": array for part, array in enumerate(call.initial_state or ())}
    named |= dict((call.dense if with_parameters else None) or {})
    return {name: array for name, array in named.items() if array is not None}
