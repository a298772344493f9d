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
_MANY = 256  # rows, beyond which counts are rounded up more coarsely: a count that is new costs oneDNN a millisecond


class Linear:
    """x W' + b. weight: [O, K], bias: [O] or None, of one floating type, on one device.

    classes: O. itemsize: bytes of a number of the result. packed: whether the weights were laid out anew, and results
    are tensors of their own, whatever `out` is; else they are kept by reference. packed_bytes: of the new layout.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.classes, self.itemsize, self._bias = len(weight), weight.element_size(), bias
        self.packed = worth_packing(weight)
        self.packed_bytes = weight.nbytes if self.packed else 0
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else weight

    def __call__(self, rows: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Returns [rows, O] of x = rows [rows, K]. out: may be taken for it."""
        if self.packed:
            count = len(rows)
            if not count:
                return rows.new_empty(0, self.classes)
            if missing := -count % (8 if count <= _MANY else 32):
                rows = torch.nn.functional.pad(rows, (0, 0, 0, missing))
            product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
            return product[:count]
        if self._bias is None:
            return torch.mm(rows, self._weight.t(), out=out)
        return torch.addmm(self._bias, rows, self._weight.t(), out=out)

    def plus(self, rows: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Returns other + x W', without the bias; `other`, [rows, O], may be overwritten by it."""
        if self.packed:
            # oneDNN overwrites what it adds to
            total: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, other, self._weight, None, "add")
            return total
        return other.addmm_(rows, self._weight.t())


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
