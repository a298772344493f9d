"""What the service must answer, by the plain numpy twin in float64."""

import numpy as np
import numpy.typing as npt
import seqloom

from helpers.plain_twin import plain_outputs
from helpers.real_server import Arrays, Served
from helpers.tolerances import near

TOLERANCE = {"float32": near(rtol=1e-4, atol=1e-5), "float64": {"rtol": 1e-10, "atol": 1e-10}}
CLOSE = TOLERANCE["float32"]


def hidden_of(served: Served, model: str, xs: npt.NDArray, state: Arrays | None = None) -> npt.NDArray:
    """s_t of the top layer, [T, H]."""
    return plain_outputs(served.networks[model], xs, state)[0]


def log_softmax(logits: npt.NDArray) -> npt.NDArray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def assert_state(state: seqloom.State, expected: Arrays, **tolerance: float) -> None:
    """A state of the SDK equals the parts expected, in their order."""
    parts = [part for part in (state.hidden, state.cell, state.inputs) if part is not None]
    for part, wanted in zip(parts, expected, strict=True):
        np.testing.assert_allclose(part, wanted, **tolerance)
