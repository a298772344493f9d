"""The network that Triton serves: torch's own RNN and linear layer over a packed batch, with weights of Seqloom's.

WEIGHTS in the environment names the .npz file that the launcher made of a model's tensors, THREADS how many of torch's
threads run it: torch's own choice where that is 0.
"""

import os

import numpy as np
import torch
from torch.nn.utils.rnn import pack_sequence, unpack_sequence


class Network:
    """An Elman layer and an output layer; hidden_size: H."""

    def __init__(self) -> None:
        if threads := int(os.environ["THREADS"]):
            torch.set_num_threads(threads)
        weights = {name: torch.from_numpy(value) for name, value in np.load(os.environ["WEIGHTS"]).items()}
        self.hidden_size, inputs = weights["rnn.weight_ih_l0"].shape
        self._rnn = torch.nn.RNN(inputs, self.hidden_size)
        self._output = torch.nn.Linear(self.hidden_size, len(weights["output.bias"]))
        for prefix, module in (("rnn.", self._rnn), ("output.", self._output)):
            own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
            module.load_state_dict(own)

    @torch.inference_mode()
    def labels(
        self, sequences: list[np.ndarray], states: torch.Tensor | None = None
    ) -> tuple[list[np.ndarray], torch.Tensor]:
        """sequences: [T_i, D] each; states: [N, H]. Returns [T_i] int32 each, and the states after them, [N, H]."""
        packed = pack_sequence([torch.from_numpy(x) for x in sequences], enforce_sorted=False)
        hidden, last = self._rnn(packed, None if states is None else states[None])
        best = self._output(hidden.data).argmax(1).to(torch.int32)
        return [each.numpy() for each in unpack_sequence(hidden._replace(data=best))], last[0]
