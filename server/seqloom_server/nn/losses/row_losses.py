"""Cross entropy and squared error of rows of outputs, and dL/do in place of the outputs; each row independently."""

import torch

IGNORED = -100  # the label of a step without a loss


def cross_entropy_(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns -log p[y] of each row, [rows]; `logits` [rows, O] become p - onehot(y).

    labels: int64 [rows]; a row with the label IGNORED has neither loss nor gradient.
    """
    torch.log_softmax(logits, 1, out=logits)
    ignored = labels == IGNORED
    index = labels.masked_fill(ignored, 0).unsqueeze(1)
    losses = logits.gather(1, index).squeeze(1).neg_().masked_fill_(ignored, 0)
    logits.exp_()
    logits.scatter_add_(1, index, logits.new_full((), -1).expand_as(index))
    if bool(ignored.any()):
        logits.index_fill_(0, ignored.nonzero().squeeze(1), 0)
    return losses


def mse_(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the sum over the outputs of (o - y)^2 of each row, [rows]; `outputs` [rows, O] become 2 (o - y)."""
    outputs.sub_(targets)
    norms: torch.Tensor = torch.linalg.vector_norm(outputs, dim=1)
    outputs.mul_(2)
    return norms.square_()
