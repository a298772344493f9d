"""Products with weights that stay: on the CPU large ones are laid out once for oneDNN, which reads them in order.

Against torch.addmm, whose products of float32 are MKL's, that took 0.6 to 0.8 of the time of [640, 1000] x
[1000, 6000] and less than a third for 16 rows (docs/performance.md).
"""

import torch

# Below, a product is over before its layout has paid for the call; each new count of rows costs a millisecond, once.
_WORTH = 2**19  # weights


class Linear:
    """x W' + b. weight: [O, K], bias: [O] or None, of one floating type, on one device; kept by reference."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight) if worth_packing(weight) else None
        self.packed_bytes = 0 if self._packed is None else weight.nbytes

    @property
    def classes(self) -> int:
        """O."""
        return len(self._weight)

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the result."""
        return self._weight.element_size()

    @property
    def packed(self) -> bool:
        """Whether results are tensors of their own, whatever `out` is."""
        return self._packed is not None

    def __call__(self, rows: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Returns [rows, O] of x = rows [rows, K]. out: may be taken for it."""
        if self._packed is not None and len(rows):
            product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self._bias, "none", [], "")
            return product
        if self._bias is None:
            return torch.mm(rows, self._weight.t(), out=out)
        return torch.addmm(self._bias, rows, self._weight.t(), out=out)

    def plus(self, rows: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Returns other + x W', without the bias; `other`, [rows, O], may be overwritten by it."""
        if self._packed is not None:
            # oneDNN overwrites what it adds to
            total: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, other, self._packed, None, "add")
            return total
        return other.addmm_(rows, self._weight.t())


def worth_packing(weight: torch.Tensor) -> bool:
    """Whether products with these weights, on the CPU, are faster through oneDNN's own layout of them."""
    return (
        weight.device.type == "cpu"
        and weight.numel() >= _WORTH
        and weight.dtype in (torch.float32, torch.bfloat16)
        and torch._C._has_mkldnn
        and (weight.dtype is torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
