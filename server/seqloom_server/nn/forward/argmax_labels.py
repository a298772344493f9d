"""Computes the label of each row of logits: the index of its first maximum.

On the CPU numpy's argmax is used, which is vectorized and torch's is not: for [640, 6000] it takes a twelfth to a
seventh of the time.
"""

import numpy as np
import torch


def labels_of(logits: torch.Tensor) -> torch.Tensor:
    """Returns labels, int32 [rows], of logits [rows, O] of a floating type; undefined for a row with a NaN."""
    if logits.device.type != "cpu":
        return logits.max(1).indices.to(torch.int32)
    if logits.dtype is torch.bfloat16:
        return _of_bfloat16(logits)
    return torch.from_numpy(logits.numpy().argmax(1)).to(torch.int32)


def _of_bfloat16(logits: torch.Tensor) -> torch.Tensor:
    """Returns labels of bfloat16 logits, which numpy does not have: the bits of positive numbers, as int16, have the
    numbers' order, and are larger than those of all others."""
    bits = logits.view(torch.int16).numpy()
    found = bits.argmax(1)
    others = np.flatnonzero(bits[np.arange(len(bits)), found] <= 0)  # rows without a positive number
    if len(others):
        found[others] = logits[torch.from_numpy(others)].float().numpy().argmax(1)
    return torch.from_numpy(found).to(torch.int32)
