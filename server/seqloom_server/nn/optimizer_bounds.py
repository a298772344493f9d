"""Upper bounds of the weights and moments after an optimizer step, to rule out overflow without reading all numbers.

The bounds are a few numbers, so steps that are far from overflow, as nearly all are, need no further check. For Adam
with weight decay in its gradient the bounds grow fast, and up to every second step must read all numbers.
"""

import math
from dataclasses import dataclass

import torch

from seqloom_server.nn.optimizer_spec import OptimizerSpec

_ROUNDING = 1.01  # an upper bound of the relative error of a product or a sum
_HEADROOM = 64.0  # factor between the largest bound and the data type's largest number


@dataclass(frozen=True, slots=True)
class OptimizerBounds:
    """Upper bounds of magnitudes. weights; first: momentum_buffer or exp_avg; second: exp_avg_sq."""

    weights: float
    first: float = 0.0
    second: float = 0.0

    def after(
        self, spec: OptimizerSpec, gradient: float, rate: float, step: int, dtype: torch.dtype
    ) -> "OptimizerBounds | None":
        """Returns the bounds after a step by torch.optim's rules; None if a number in it might overflow.

        gradient: upper bound of each element after clipping. rate: the learning rate. step: the step's number, from 1.
        """
        decay = spec.weight_decay
        # AdamW applies its decay to the weights, the others add it to the gradient
        grown = self.weights * (1 + rate * decay) if spec.kind == "adamw" else self.weights
        pull = gradient * _ROUNDING + (0.0 if spec.kind == "adamw" else decay * self.weights)
        # factors that torch's kernels cast to the weights' type, where they may become infinite
        sides: tuple[float, ...] = (rate, decay, rate * decay)
        if spec.kind == "sgd":
            first = spec.momentum * self.first + pull
            second = 0.0
            weights = grown + rate * first
        else:
            first, second = max(self.first, pull), max(self.second, pull * pull)
            # the smallest divisor; 0 if the data type cannot represent it
            smallest = float(torch.tensor(spec.epsilon, dtype=dtype))
            largest_step = rate / (1 - spec.beta1**step)
            quotient = first / smallest if smallest else math.inf
            sides += (largest_step, quotient, math.sqrt(second / (1 - spec.beta2**step)))
            weights = grown + largest_step * quotient
        after = OptimizerBounds(weights * _ROUNDING, first * _ROUNDING, second * _ROUNDING)
        most = torch.finfo(dtype).max / _HEADROOM
        within = all(bound < most for bound in (after.weights, after.first, after.second, pull, *sides))
        return after if within else None
