"""Computes the requested outputs of each step from the top layer's hidden states, in chunks of bounded memory.

With o_t = V s_t + c: logits o, probs softmax(o), log_probs o - logsumexp(o), labels argmax(o).
"""

import torch

from seqloom_server.nn.forward.argmax_labels import labels_of
from seqloom_server.nn.forward.int8_linear import Int8Linear
from seqloom_server.nn.forward.packed_linear import PackedLinear
from seqloom_server.nn.spec import OutputKind

# The largest [rows, O] buffer, the result itself not counted.
MAX_BUFFER_BYTES = 64 * 2**20
# Labels and top-k are taken from blocks of logits that are still in the processor's cache, of as many rows as make the
# product no slower: 0.89 of the time of one product, with MKL and with oneDNN's packed weights (docs/performance.md).
_BLOCK_BYTES = 6 * 2**20
_BLOCK_ROWS = 256  # at least


def outputs(
    hidden: torch.Tensor, output: PackedLinear | Int8Linear, kind: OutputKind, top_k: int = 0
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Returns (values, labels) of `hidden` [rows, H], by V [O, H] and c [O] of `output`; for two directions H is 2 H.

    values: [rows, O] of the weights' dtype, float32 for bfloat16 ("hidden": [rows, H]; "top_k": log-probabilities
    [rows, k], best first; "labels": None). labels: int32, [rows] for "labels", [rows, k] for "top_k", else None.
    Raises ValueError for another kind, or a top_k outside 1..O.
    """
    if kind == "hidden":
        return _widened(hidden), None
    if kind == "logits":
        return _widened(output(hidden)), None
    if kind == "top_k" and not 1 <= top_k <= output.classes:
        raise ValueError(f"top_k is {top_k}: expected 1 to {output.classes}")
    rows, most = len(hidden), _most_rows(hidden, output, kind)
    if rows <= most:
        return _from_logits(output(hidden), kind, top_k)
    buffer = None if output.packed else hidden.new_empty(most, output.classes)
    values = labels = None
    for start in range(0, rows, most):
        part = hidden[start : start + most]
        out = None if buffer is None else buffer[: len(part)]
        part_values, part_labels = _from_logits(output(part, out), kind, top_k)
        values = _put(values, part_values, start, rows)
        labels = _put(labels, part_labels, start, rows)
    return values, labels


def _most_rows(hidden: torch.Tensor, output: PackedLinear | Int8Linear, kind: OutputKind) -> int:
    """Returns the most rows of one product; blocks in the cache are about equally large."""
    rows, width = len(hidden), max(4, output.itemsize)  # bfloat16 logits become float32
    most = chunk_rows(output.classes, width)
    if kind not in ("labels", "top_k") or hidden.device.type != "cpu":
        return most
    most = min(most, max(_BLOCK_ROWS, _BLOCK_BYTES // (output.classes * width)))
    blocks = -(-rows // most)
    # few row counts, each of which costs oneDNN a millisecond once
    return most if blocks < 2 else min(most, -(-rows // blocks // 16) * 16)


def chunk_rows(classes: int, itemsize: int) -> int:
    """Returns the most rows of `classes` numbers in one buffer."""
    return max(1, MAX_BUFFER_BYTES // (classes * itemsize))


def _from_logits(logits: torch.Tensor, kind: OutputKind, top_k: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if kind == "labels":
        return None, labels_of(logits)
    logits = _widened(logits)
    if kind == "probs":
        return torch.softmax(logits, 1), None
    if kind == "log_probs":
        return torch.log_softmax(logits, 1), None
    if kind == "top_k":
        best, indices = logits.topk(top_k, 1)
        return best - logits.logsumexp(1, keepdim=True), indices.to(torch.int32)
    raise ValueError(f"kind is {kind!r}: expected an OutputKind")


def _widened(rows: torch.Tensor) -> torch.Tensor:
    return rows.float() if rows.dtype is torch.bfloat16 else rows


def _put(whole: torch.Tensor | None, part: torch.Tensor | None, start: int, rows: int) -> torch.Tensor | None:
    """Copies `part` into `whole` at row `start`; allocates `whole` for the first part."""
    if part is None:
        return None
    if whole is None:
        whole = part.new_empty(rows, *part.shape[1:])
    whole[start : start + len(part)] = part
    return whole
