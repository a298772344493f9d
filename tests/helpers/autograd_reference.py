"""What training through the service must give, by torch.nn, torch.optim and autograd in float64."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from seqloom_server.nn.forward.network import Network

MODULES = {"elman": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}


class Reference:
    """A network as torch.nn has it. parameters: its own, by name, in float64, with gradients."""

    def __init__(self, network: Network) -> None:
        spec = network.spec
        self.spec = spec
        self.parameters = {
            name: tensor.detach().double().cpu().clone().requires_grad_()
            for name, tensor in network.parameters().items()
        }
        options = {"nonlinearity": spec.activation} if spec.cell == "elman" else {}
        self._rnn = MODULES[spec.cell](spec.input_size, spec.hidden_size, spec.num_layers, **options).double()

    def hidden(self, x: torch.Tensor, state: Sequence[torch.Tensor] | None = None):
        """s_t of the top layer [T, H], and the final state ([L, 1, H] per part)."""
        own = {name.removeprefix("rnn."): p for name, p in self.parameters.items() if name.startswith("rnn.")}
        given = None if state is None else tuple(state) if self.spec.cell == "lstm" else state[0]
        outputs, final = torch.func.functional_call(self._rnn, own, (x[:, None], given))
        return outputs[:, 0], final if isinstance(final, tuple) else (final,)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.parameters["output.weight"].T + self.parameters["output.bias"]

    def loss(self, x: npt.NDArray, target: npt.NDArray, kind: str) -> torch.Tensor:
        """Of one sequence, the sum over its steps."""
        return loss_of(self.logits(self.hidden(torch.from_numpy(x).double())[0]), target, kind)

    def total(self, xs: Sequence[npt.NDArray], targets: Sequence[npt.NDArray], kind: str = "cross_entropy"):
        return sum(self.loss(x, target, kind) for x, target in zip(xs, targets, strict=True))

    def train(self, optimizer: torch.optim.Optimizer, steps, clip_norm: float | None = None) -> None:
        """steps: of each, its calls (xs, targets)."""
        for calls in steps:
            optimizer.zero_grad()
            for xs, targets in calls:
                self.total(xs, targets).backward()
            if clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), clip_norm)
            optimizer.step()


def loss_of(logits: torch.Tensor, target: npt.NDArray, kind: str) -> torch.Tensor:
    labels = torch.from_numpy(np.asarray(target))
    if kind == "cross_entropy":
        return torch.nn.functional.cross_entropy(logits, labels.long(), reduction="sum")
    if kind == "mse":
        return ((logits - labels) ** 2).sum()
    return torch.nn.functional.ctc_loss(
        logits.log_softmax(-1)[:, None], labels.long()[None], [len(logits)], [len(labels)], reduction="sum"
    )
