"""A linear layer with fixed weights: on the CPU, where that is faster, they are packed once in oneDNN's layout."""

import torch

from seqloom_server.nn.forward.product_choice import choices

_MANY = 256  # rows, beyond which counts are rounded up more coarsely: each new count costs oneDNN 1 ms and 0.6 MB


class PackedLinear:
    """x W' + b. weight: [O, K], bias: [O] or None, of one floating type, on one device. pack: None for what is faster.

    classes: O. itemsize: bytes of a number of the result. packed: whether the weights are a copy in oneDNN's layout,
    and results are new tensors, whatever `out` is; else they are kept by reference. packed_bytes: of the copy.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, *, pack: bool | None = None) -> None:
        self.classes, self.itemsize, self._bias = len(weight), weight.element_size(), bias
        self.packed = choices.packs(weight) if pack is None else pack
        self.packed_bytes = weight.nbytes if self.packed else 0
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else weight
        # torch computes bfloat16 products by oneDNN as well
        self._rounds_rows = self.packed or (weight.dtype is torch.bfloat16 and weight.device.type == "cpu")

    def __call__(self, rows: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Returns [rows, O] for x = rows [rows, K]. out: a buffer that may be used for the result."""
        count = len(rows)
        if padding := self._padding(count):
            rows, out = torch.nn.functional.pad(rows, (0, 0, 0, padding)), None
        if self.packed:
            if not count:
                return rows.new_empty(0, self.classes)
            product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
        elif self._bias is None:
            product = torch.mm(rows, self._weight.t(), out=out)
        else:
            product = torch.addmm(self._bias, rows, self._weight.t(), out=out)
        return product[:count] if padding else product

    def plus(self, rows: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Returns other + x W', without the bias; may overwrite `other`, [rows, O].

        With packed weights each new number of rows costs a millisecond once, and keeps 0.9 MB; up to 256 rows each is
        taken as it is, beyond them counts are rounded up, as a group of streams may have thousands of rows.
        """
        if self.packed:
            count = len(rows)
            if padding := self._padding(count) if count > _MANY else 0:
                rows, other = (torch.nn.functional.pad(tensor, (0, 0, 0, padding)) for tensor in (rows, other))
            # oneDNN overwrites `other`
            total: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, other, self._weight, None, "add")
            return total[:count] if padding else total
        if padding := self._padding(len(rows)):
            padded, total = (torch.nn.functional.pad(tensor, (0, 0, 0, padding)) for tensor in (rows, other))
            return total.addmm_(padded, self._weight.t())[: len(rows)]
        return other.addmm_(rows, self._weight.t())

    def _padding(self, count: int) -> int:
        """Returns the rows of padding, so that there are few row counts; without packing an eighth, or up to 8 rows."""
        if not self._rounds_rows or (count == 1 and not self.packed):  # torch computes a single row without oneDNN
            return 0
        if self.packed:
            return -count % (8 if count <= _MANY else 32)
        return -count % max(8, 1 << max(0, count.bit_length() - 4))
