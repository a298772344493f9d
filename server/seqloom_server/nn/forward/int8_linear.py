"""A linear layer of 8-bit whole numbers: weights by output row, inputs by a scale that no neighbour changes.

A number x stands as q = x / scale rounded, -127 to 127. The sums of products q_x q_w are whole numbers in 32 bits, in
which nothing is lost up to spec.MAX_INT8_INPUTS products, so that their order, the library and the number of rows do
not matter; each sum becomes float32 and is multiplied once. A row's result therefore has the same bits alone and in any
company.

On x86 oneDNN computes them, from weights in its own layout and inputs as uint8, q + 128: of the forms that torch has,
the one that is fast with AMX, AVX-512 VNNI and AVX-VNNI (docs/performance.md). Processors without these add pairs of
products in 16 bits, which overflow; what torch gives is tried once, and where it is not exact, or on another device,
the same whole numbers are multiplied as float32, in parts whose sums stay below 2^24, where float32 is exact.
"""

import functools
import itertools
import logging
from typing import Literal

import torch

from seqloom_server.nn.spec import MAX_INT8_INPUTS

log = logging.getLogger(__name__)

LEVELS = 127  # of each sign
_ZERO = 128  # what stands for 0 in uint8
_LEAST = 1e-36  # of a scale: smaller numbers count as zeros
_EXACT = (1 << 24) // (LEVELS * LEVELS)  # products whose sum float32 holds exactly
_BLOCK = 128  # rows
_PART = 1 << 22  # weights that are float32 at a time where oneDNN is not used

Quantised = torch.Tensor
"""uint8 [at least rows, K], q + 128: rounded_rows(rows) of them, of which those behind `rows` may hold anything."""


class Int8Linear:
    """x W' + b. weight: [O, K], bias: [O] or None, float32, on one device; K at most MAX_INT8_INPUTS.

    inputs: "states", which lie in [-1, 1], have one fixed scale; "rows" have one scale a row, of its own largest
    magnitude. classes: O. itemsize: bytes of a number of the result. packed: results are new tensors, whatever `out`
    is. packed_bytes: of the weights in 8 bits, their scales and the bias.
    """

    itemsize, packed = 4, True

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, inputs: Literal["states", "rows"]) -> None:
        assert weight.shape[1] <= MAX_INT8_INPUTS, "the spec has let more inputs pass than 32 bits can sum"
        self.classes, self._bias, self._by_row = len(weight), bias, inputs == "rows"
        scales = _scales(weight)
        numbers = torch.round(weight / scales).to(torch.int8)
        self._scales = scales[:, 0] if self._by_row else scales[:, 0] / LEVELS
        self.packed_bytes = numbers.nbytes + self._scales.nbytes + (0 if bias is None else bias.nbytes)
        self._onednn = weight.device.type == "cpu" and onednn_is_exact()
        self._fused = None
        if self._onednn:
            self._fused = None if self._by_row or not onednn_adds_after() else bias
            self._weight = torch.ops.onednn.qlinear_prepack(numbers, None)
            self._zeros = torch.zeros(1, dtype=torch.int64).expand(len(weight))
        else:
            self._weight = numbers

    def __call__(self, rows: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Returns [rows, O] for x = rows [rows, K], float32. out: not used."""
        if not self._by_row:
            return self.product(quantise_states(rows), len(rows))
        quantised, scales = quantise_rows(rows)
        return self.product(quantised, len(rows), scales)

    def product(self, quantised: Quantised, count: int, row_scales: torch.Tensor | None = None) -> torch.Tensor:
        """Returns x W' + b of the first `count` rows, float32 [count, O]. row_scales: [count, 1], of "rows"."""
        if not count:
            return self._scales.new_empty(0, self.classes)
        if self._onednn:
            rows = quantised[: rounded_rows(count)]
            result = _onednn(rows, self._weight, self._scales, self._zeros, self._fused)[:count]
        else:
            result = _float32(quantised[:count], self._weight, self._scales)
        if row_scales is not None:
            result.mul_(row_scales)
        return result if self._bias is None or self._fused is not None else result.add_(self._bias)


def rounded_rows(count: int) -> int:
    """Returns the rows of which a product of `count` is computed: each new number costs oneDNN a millisecond or two."""
    return count + -count % (16 if count <= 256 else 32)


def quantise_states(states: torch.Tensor) -> Quantised:
    """Returns states [rows, K], in [-1, 1], as whole numbers of 1 / 127."""
    quantised = states.new_empty((rounded_rows(len(states)), states.shape[1]), dtype=torch.uint8)
    scratch = torch.empty_like(states[:_BLOCK])
    for start in range(0, len(states), _BLOCK):  # a block stays in the cache
        quantise_states_(quantised[start:], states[start : start + _BLOCK], scratch)
    return quantised


def quantise_states_(quantised: Quantised, states: torch.Tensor, scratch: torch.Tensor) -> None:
    """Does the same in a tensor that is there; scratch: of the states' shape, or longer."""
    # cutting off what is behind the point rounds, as there is a half more; the numbers are above 1
    count = len(states)
    quantised[:count].copy_(torch.mul(states, float(LEVELS), out=scratch[:count]).add_(_ZERO + 0.5))


def quantise_rows(rows: torch.Tensor) -> tuple[Quantised, torch.Tensor]:
    """Returns rows [rows, K] as whole numbers of their scales, and these, [rows, 1]."""
    quantised = rows.new_empty((rounded_rows(len(rows)), rows.shape[1]), dtype=torch.uint8)
    scales = _scales(rows)
    quantised[: len(rows)].copy_(torch.div(rows, scales).add_(_ZERO + 0.5))
    return quantised, scales


def _scales(rows: torch.Tensor) -> torch.Tensor:
    """Returns the scale of each row, [rows, 1]: its largest magnitude becomes 127."""
    return rows.abs().amax(1, keepdim=True).div_(LEVELS).clamp_min_(_LEAST)


def _onednn(
    quantised: Quantised,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    # without a scale of the inputs, so that a sum is rounded once, whatever instructions do it
    product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        quantised, 1.0, _ZERO, weight, scales, zeros, bias, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


def _float32(quantised: Quantised, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Returns the same by float32 products of whole numbers. weight: int8 [O, K]."""
    rows = quantised.float().sub_(_ZERO)
    result = rows.new_empty(len(rows), len(weight))
    block = max(1, _PART // weight.shape[1])
    for first in range(0, len(weight), block):
        sums: torch.Tensor | None = None
        for start in range(0, weight.shape[1], _EXACT):
            columns = slice(start, start + _EXACT)
            part = torch.mm(rows[:, columns], weight[first : first + block, columns].float().t()).to(torch.int32)
            sums = part if sums is None else sums.add_(part)
        assert sums is not None
        torch.mul(sums.float(), scales[first : first + block], out=result[:, first : first + block])
    return result


@functools.cache
def onednn_is_exact() -> bool:
    """Returns whether this torch's oneDNN sums products of whole numbers exactly on this processor."""
    try:
        exact, problem = _tried(with_bias=False), "they are not exact"
    except (AttributeError, RuntimeError) as error:
        exact, problem = False, str(error)
    if not exact:
        log.warning("no 8-bit products on this processor with this torch, slower ones are used: %s", problem)
    return exact


@functools.cache
def onednn_adds_after() -> bool:
    """Returns whether it also adds a bias as float32 does, to a product that has been rounded."""
    return _tried(with_bias=True)


@torch.inference_mode()
def _tried(*, with_bias: bool) -> bool:
    shapes = [*itertools.product((16, 64), (5, 1000), (3, 64))]  # of both sides of what its kernels take at a time
    if not with_bias:  # which only layers have, of fewer inputs
        shapes.append((16, MAX_INT8_INPUTS, 3))  # whose sums are the largest
    return all(_is_as_float32(*shape, with_bias=with_bias) for shape in shapes)


def _is_as_float32(rows: int, inputs: int, classes: int, *, with_bias: bool) -> bool:
    """Tries the largest numbers there are, all of one sign and of both."""
    signs = torch.arange(classes * inputs).view(classes, inputs)
    for weight in (torch.ones(classes, inputs), 1.0 - 2 * (signs % 3 % 2)):
        numbers, scales = (LEVELS * weight).to(torch.int8), torch.linspace(1e-5, 0.3, classes)
        packed, zeros = torch.ops.onednn.qlinear_prepack(numbers, None), torch.zeros(classes, dtype=torch.int64)
        bias = torch.linspace(-0.7, 1.3, classes) if with_bias else None
        for low in (_ZERO - LEVELS, _ZERO + LEVELS, _ZERO + 1):
            quantised = torch.full((rounded_rows(rows), inputs), _ZERO + LEVELS, dtype=torch.uint8)
            quantised[:, ::2] = low
            wanted = _float32(quantised, numbers, scales)
            if bias is not None:
                wanted.add_(bias)
            if not torch.equal(_onednn(quantised, packed, scales, zeros, bias), wanted):
                return False
    return True
