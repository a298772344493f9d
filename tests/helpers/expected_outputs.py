"""What the service must answer, by the plain numpy twin in float64; and the noise that it is asked about."""

import numpy as np
import numpy.typing as npt
import seqloom
from seqloom_server.nn.reference import reference_forward

from helpers.real_server import Arrays, Served
from helpers.tolerances import near

TOLERANCE = {"float32": near(rtol=1e-4, atol=1e-5), "float64": {"rtol": 1e-10, "atol": 1e-10}}
CLOSE = TOLERANCE["float32"]


def noise(steps: int, width: int = 5, seed: int = 0) -> npt.NDArray[np.float64]:
    """[steps, width] of standard normal noise."""
    return np.random.default_rng(seed).standard_normal((steps, width))


def hidden_of(served: Served, model: str, xs: npt.NDArray, state: Arrays | None = None) -> npt.NDArray:
    """s_t of the top layer, [T, H]."""
    network = served.networks[model]
    parameters = {name: tensor.double().numpy() for name, tensor in network.parameters().items()}
    return reference_forward.forward(network.spec, parameters, np.asarray(xs, float), state)[0]


def log_softmax(logits: npt.NDArray) -> npt.NDArray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def assert_state(state: seqloom.State, expected: Arrays, **tolerance: float) -> None:
    """A state of the SDK equals the parts expected, in their order."""
    parts = [part for part in (state.hidden, state.cell, state.inputs) if part is not None]
    for part, wanted in zip(parts, expected, strict=True):
        np.testing.assert_allclose(part, wanted, **tolerance)
