"""What the plain numpy twin gives one sequence by itself, in float64."""

import numpy as np
import numpy.typing as npt
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.reference import reference_forward

State = tuple[npt.NDArray, ...]


def plain_outputs(
    network: Network, xs: npt.NDArray, state: State | None = None
) -> tuple[npt.NDArray, npt.NDArray, State]:
    """(s_t of the top layer [T, H], logits [T, O], final state, [L, 1, H] per part) of frames [T, D]."""
    parameters = {name: tensor.double().cpu().numpy() for name, tensor in network.parameters().items()}
    hidden, final = reference_forward.forward(network.spec, parameters, np.asarray(xs, float), state)
    return hidden, reference_forward.logits(parameters, hidden), final
