"""The CTC loss, -log p(labels) summed over all alignments, and its gradient, by torch's ctc_loss.

Of the O columns only those of the blank and of a sequence's own labels matter. Only these are gathered, and torch gets
each sequence over its own alphabet: [T, U + 1] a sequence are kept, never [T, N, O].
"""

from collections.abc import Sequence

import numpy as np
import torch

from seqloom_server.nn.forward import outputs
from seqloom_server.nn.losses.training_example import Array
from seqloom_server.nn.recurrence.yield_points import Pieces, YieldBudget

_CELL_FLOPS = 2000.0  # the cost of a cell in the two passes over [T, 2 L + 1]: logarithms and exponentials


class Alignment:
    """One sequence's labels over its own alphabet, its log-probabilities, and then their gradient.

    columns: [U + 1], the classes of the alphabet, the blank 0 first. rows: [T, U + 1], log p_t of these; after
    `differentiate` dL/do_t of these. loss: set by `differentiate`.
    """

    def __init__(self, labels: Array, steps: int, like: torch.Tensor) -> None:
        alphabet, places = np.unique(np.concatenate([[0], labels]), return_inverse=True)
        self.labels = torch.from_numpy(places.reshape(-1)[1:].astype(np.int64))
        self.columns = torch.from_numpy(alphabet.astype(np.int64)).to(like.device)
        self.rows = like.new_empty(steps, len(alphabet))
        self.loss = 0.0

    @property
    def cells(self) -> int:
        """The number of cells of the table of its alignments, [T, 2 L + 1]."""
        return len(self.rows) * (2 * len(self.labels) + 1)


def differentiate(alignments: Sequence[Alignment], budget: YieldBudget) -> Pieces:
    """Replaces each sequence's log-probabilities by the gradient of its loss by its logits, and sets its loss."""
    waiting = sorted(alignments, key=lambda alignment: -alignment.cells)
    while waiting:
        # padded to the longest in both dimensions, three tables for each sequence
        steps, labels, width, count = 0, 0, 0, 0
        for alignment in waiting:
            steps, labels = max(steps, len(alignment.rows)), max(labels, len(alignment.labels))
            width = max(width, len(alignment.columns))
            numbers = steps * (2 * (2 * labels + 1) + 2 * width) * (count + 1)
            if count and (
                numbers * alignment.rows.element_size() > outputs.MAX_BUFFER_BYTES
                or steps * (2 * labels + 1) * (count + 1) * _CELL_FLOPS > budget.limit
            ):
                break
            count += 1
        _differentiate(waiting[:count])
        if budget.due(sum(alignment.cells for alignment in waiting[:count]) * _CELL_FLOPS):
            yield
        del waiting[:count]


def _differentiate(alignments: list[Alignment]) -> None:
    with torch.inference_mode(False), torch.enable_grad():
        device = alignments[0].rows.device
        steps, width = max(len(a.rows) for a in alignments), max(len(a.columns) for a in alignments)
        log_probs = torch.zeros(steps, len(alignments), width, dtype=alignments[0].rows.dtype, device=device)
        for n, a in enumerate(alignments):
            log_probs[: len(a.rows), n, : len(a.columns)] = a.rows
        log_probs.requires_grad_()
        losses = torch.nn.functional.ctc_loss(
            log_probs,
            torch.cat([a.labels.clone() for a in alignments]).to(device),
            torch.tensor([len(a.rows) for a in alignments]),
            torch.tensor([len(a.labels) for a in alignments]),
            reduction="none",
        )
        (gradient,) = torch.autograd.grad(losses.sum(), log_probs)
    for n, (a, loss) in enumerate(zip(alignments, losses.tolist(), strict=True)):
        # torch's gradient is already by the logits before log_softmax: p_k less the share of k in all alignments
        a.rows = gradient[: len(a.rows), n, : len(a.columns)]
        a.loss = loss
