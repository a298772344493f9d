"""Runs the recurrent layers on a GPU: one call of cuDNN through torch, in any precision.

Sequences of equal length are passed as a padded batch: torch then lets cuDNN use kernels that keep a small network's
weights on the chip, which do not support unequal lengths.
"""

from collections.abc import Callable

import torch

from seqloom_server.nn.spec import ModelSpec

State = tuple[torch.Tensor, ...]


class CudnnLayers:
    """The recurrent layers of a network. rnn: torch.nn's module with its weights, float32 or float64. forward: torch's
    function for its cell.

    For bfloat16 the weights are copied; states are passed in float32, and rounded at each call.
    """

    def __init__(
        self, spec: ModelSpec, rnn: torch.nn.RNNBase, forward: Callable[..., tuple[torch.Tensor, ...]]
    ) -> None:
        self._spec, self._forward = spec, forward
        self._half = spec.precision == "bf16"
        if self._half:
            make: Callable[..., torch.nn.RNNBase] = type(rnn)
            module = make(
                rnn.input_size,
                rnn.hidden_size,
                rnn.num_layers,
                bidirectional=rnn.bidirectional,
                device=rnn.weight_ih_l0.device,
                dtype=torch.bfloat16,
            )
            module.load_state_dict(rnn.state_dict())
            module.requires_grad_(False).eval().flatten_parameters()
            rnn = module
        self._flat = [weight for layer in rnn.all_weights for weight in layer]
        self.nbytes = sum(weight.nbytes for weight in self._flat) if self._half else 0

    def advance(self, rows: torch.Tensor, batch_sizes: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Does as Network.advance(); hidden is bfloat16 if that is the precision."""
        spec = self._spec
        if self._half:
            rows, state = rows.bfloat16(), tuple(part.bfloat16() for part in state)
        before = state if len(state) > 1 else state[0]
        count = int(batch_sizes[0])
        if count == int(batch_sizes[-1]):
            hidden, *after = self._forward(
                rows.view(len(batch_sizes), count, -1),
                before,
                self._flat,
                True,
                spec.num_layers,
                0.0,
                False,
                spec.bidirectional,
                False,
            )
            hidden = hidden.flatten(0, 1)
        else:
            hidden, *after = self._forward(
                rows, batch_sizes, before, self._flat, True, spec.num_layers, 0.0, False, spec.bidirectional
            )
        return hidden, tuple(part.float() if self._half else part for part in after)
