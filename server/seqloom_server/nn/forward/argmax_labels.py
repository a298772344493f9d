"""The label of each row of logits: the first of its largest.

On the CPU numpy looks for it, which compares many numbers at once where torch compares one: of [640, 6000] in a twelfth
to a seventh of the time.
"""

import numpy as np
import torch


def labels_of(logits: torch.Tensor) -> torch.Tensor:
    """Returns int32 [rows] of logits [rows, O] of a floating type; of a row that holds a NaN, any."""
    if logits.device.type != "cpu":
        return logits.max(1).indices.to(torch.int32)
    if logits.dtype is torch.bfloat16:
        return _of_bfloat16(logits)
    return torch.from_numpy(logits.numpy().argmax(1)).to(torch.int32)


def _of_bfloat16(logits: torch.Tensor) -> torch.Tensor:
    """The same of what numpy has no type for: the bits of positive numbers, as integers, stand in the numbers' order,
    above those of all others."""
    bits = logits.view(torch.int16).numpy()
    found = bits.argmax(1)
    others = np.flatnonzero(bits[np.arange(len(bits)), found] <= 0)  # rows without a positive number
    if len(others):
        found[others] = logits[torch.from_numpy(others)].float().numpy().argmax(1)
    return torch.from_numpy(found).to(torch.int32)
