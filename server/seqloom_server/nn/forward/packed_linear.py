"""Products with weights that stay: on the CPU large ones are laid out once for oneDNN, which reads them in order.

Against torch.addmm, whose products of float32 are MKL's, that took 0.6 to 0.8 of the time of [640, 1000] x
[1000, 6000] and less than a third for 16 rows (docs/performance.md).
"""

import functools
import logging
import platform

import torch

log = logging.getLogger(__name__)

_WORTH = 2**19  # weights; below, a product is over before its layout has paid for the call
_MANY = 256  # rows, beyond which counts are rounded up more coarsely: one that is new costs oneDNN 1 ms and 0.6 MB


class PackedLinear:
    """x W' + b. weight: [O, K], bias: [O] or None, of one floating type, on one device.

    classes: O. itemsize: bytes of a number of the result. packed: whether the weights were laid out anew, and results
    are tensors of their own, whatever `out` is; else they are kept by reference. packed_bytes: of the new layout.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.classes, self.itemsize, self._bias = len(weight), weight.element_size(), bias
        self.packed = worth_packing(weight)
        self.packed_bytes = weight.nbytes if self.packed else 0
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else weight
        # torch's own products of bfloat16 are oneDNN's as well
        self._in_few_sizes = self.packed or (weight.dtype is torch.bfloat16 and weight.device.type == "cpu")

    def __call__(self, rows: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Returns [rows, O] of x = rows [rows, K]. out: may be taken for it."""
        count = len(rows)
        if missing := self._missing(count):
            rows, out = torch.nn.functional.pad(rows, (0, 0, 0, missing)), None
        if self.packed:
            if not count:
                return rows.new_empty(0, self.classes)
            product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
        elif self._bias is None:
            product = torch.mm(rows, self._weight.t(), out=out)
        else:
            product = torch.addmm(self._bias, rows, self._weight.t(), out=out)
        return product[:count] if missing else product

    def plus(self, rows: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Returns other + x W', without the bias; `other`, [rows, O], may be overwritten by it.

        Of packed weights each new number of rows costs a millisecond and 0.9 MB, which is kept; they are as many as
        sequences share a slice, `max_batch_sequences` at most.
        """
        if self.packed:
            # oneDNN overwrites what it adds to
            total: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, other, self._weight, None, "add")
            return total
        if missing := self._missing(len(rows)):
            padded, others = (torch.nn.functional.pad(each, (0, 0, 0, missing)) for each in (rows, other))
            return others.addmm_(padded, self._weight.t())[: len(rows)]
        return other.addmm_(rows, self._weight.t())

    def _missing(self, count: int) -> int:
        """How many rows there are to be more; of small networks an eighth at most, but for the first few."""
        if not self._in_few_sizes or (count == 1 and not self.packed):  # a single one goes without oneDNN
            return 0
        if self.packed:
            return -count % (8 if count <= _MANY else 32)
        return -count % max(8, 1 << max(0, count.bit_length() - 4))


def worth_packing(weight: torch.Tensor) -> bool:
    """Whether products with these weights, on the CPU, are faster through oneDNN's own layout of them."""
    return weight.device.type == "cpu" and weight.numel() >= _WORTH and _packs(weight.dtype)


@functools.cache
def _packs(dtype: torch.dtype) -> bool:
    """Whether this torch, on this processor, has such products: they are no part of what torch promises."""
    # measured on x86 only
    if dtype not in (torch.float32, torch.bfloat16) or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        ones = torch.ones(2, 2, dtype=dtype)
        weight = torch.ops.mkldnn._reorder_linear_weight(ones)
        torch.ops.mkldnn._linear_pointwise(ones, weight, None, "none", [], "")
        torch.ops.mkldnn._linear_pointwise.binary(ones, ones.clone(), weight, None, "add")
    except (AttributeError, RuntimeError) as error:
        log.warning("this torch has no packed products of %s, the slower ones are used: %s", dtype, error)
        return False
    return True
