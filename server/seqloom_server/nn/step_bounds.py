"""Bounds on the weights and moments that an optimizer's step gives: where they are low enough, nothing can overflow.

They are a few numbers, so that a step that is far from overflowing, as nearly all are, pays nothing to be sure of it.
Only of Adam with weight decay in its gradient the bound grows so fast that up to every second step looks at everything.
"""

import math
from dataclasses import dataclass

import torch

from seqloom_server.nn.optimizer_spec import OptimizerSpec

_ROUNDING = 1.01  # what rounding may add to a product or a sum, and more
_HEADROOM = 64.0  # below the largest number of a type


@dataclass(frozen=True, slots=True)
class StepBounds:
    """No weight is larger in magnitude than `weights`; first: of momentum_buffer or exp_avg, second: of exp_avg_sq."""

    weights: float
    first: float = 0.0
    second: float = 0.0

    def after(
        self, spec: OptimizerSpec, gradient: float, rate: float, step: int, dtype: torch.dtype
    ) -> "StepBounds | None":
        """Returns the bounds after a step by torch.optim's rules; None where something in it might overflow.

        gradient: what no element is larger than, once clipped. rate: of this step. step: its number, from 1.
        """
        decay = spec.weight_decay
        # AdamW's decay goes straight to the weights
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
            smallest = float(
                torch.tensor(spec.epsilon, dtype=dtype)
            )  # of the divisor; 0 where the type has none so small
            largest_step = rate / (1 - spec.beta1**step)
            quotient = first / smallest if smallest else math.inf
            sides += (largest_step, quotient, math.sqrt(second / (1 - spec.beta2**step)))
            weights = grown + largest_step * quotient
        after = StepBounds(weights * _ROUNDING, first * _ROUNDING, second * _ROUNDING)
        most = torch.finfo(dtype).max / _HEADROOM
        within = all(each < most for each in (after.weights, after.first, after.second, pull, *sides))
        return after if within else None
