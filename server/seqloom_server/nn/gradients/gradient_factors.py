"""Gradients of parameters out of their factors: each is a product of matrices, dL/dW = Delta' S, or a sum of rows.

A sink takes the factors of one caller's rows, or of all rows, and makes the product of them, keeps the factors, or
computes only the product's norm.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from seqloom_server.nn.losses.training_example import Array
from seqloom_server.nn.recurrence.yield_points import Pieces, YieldBudget, product
from seqloom_server.nn.spec import GATES, ModelSpec

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Product:
    """How a parameter's gradient follows from factors: left' right in its shape, or the sum of left's rows."""

    parameter: str
    left: int
    right: int | None


class FactorSink(Protocol):
    """Takes factors by name, then multiplies pairs of them; rows of later groups and chunks come afterwards.

    put: views, valid until release().
    """

    def put(self, name: str, rows: torch.Tensor) -> None: ...

    def multiply(self, weight: str, bias: str, left: str, right: str) -> Pieces: ...

    def release(self) -> None: ...


class Dense:
    """The products themselves, summed over groups and chunks. tensors: by parameter, once something was multiplied."""

    def __init__(self, shapes: Shapes, budget: YieldBudget) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._shapes = shapes
        self._budget = budget
        self._rows: dict[str, torch.Tensor] = {}

    def put(self, name: str, rows: torch.Tensor) -> None:
        """Takes a factor in place of one of the same name."""
        self._rows[name] = rows

    def multiply(self, weight: str, bias: str, left: str, right: str) -> Pieces:
        """Adds left' right to the weight's gradient, the sum of left's rows to the bias's."""
        add = weight in self.tensors
        d_a = self._rows[left]
        if not add:
            with torch.inference_mode(False):  # usable outside of inference mode, by optimizers
                for name in (weight, bias):
                    self.tensors[name] = torch.empty(self._shapes[name], dtype=d_a.dtype, device=d_a.device)
        yield from product(self._budget, self.tensors[weight].flatten(1), d_a.t(), self._rows[right], add=add)
        if add:
            self.tensors[bias].add_(d_a.sum(0))
        else:
            torch.sum(d_a, 0, out=self.tensors[bias])

    def release(self) -> None:
        """Frees the factors."""
        self._rows.clear()

    def result(self) -> dict[str, torch.Tensor]:
        """The gradients in the order of the parameters."""
        return {name: self.tensors[name] for name in self._shapes}

    def norms(self) -> dict[str, float]:
        """The Euclidean norm of each."""
        norm = torch.linalg.vector_norm
        return {name: float(norm(self.tensors[name], dtype=torch.float64)) for name in self._shapes}


class Factors:
    """Keeps the factors."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._rows: dict[str, list[torch.Tensor]] = {}
        self._products: dict[str, tuple[str, str | None]] = {}

    def put(self, name: str, rows: torch.Tensor) -> None:
        """Keeps a copy of the rows, so that a slow reader does not keep those of other callers alive."""
        self._rows.setdefault(name, []).append(rows.clone())

    def multiply(self, weight: str, bias: str, left: str, right: str) -> Pieces:
        """Notes which factors make which parameters."""
        self._products[weight] = left, right
        self._products[bias] = left, None
        yield from ()

    def release(self) -> None:
        """Does nothing: the factors are kept."""

    def result(self) -> tuple[list[Array], list[Product]]:
        """The factors, and the products to be made of them in the order of the parameters."""
        numbers = {name: number for number, name in enumerate(self._rows)}
        arrays = [(parts[0] if len(parts) == 1 else torch.cat(parts)).cpu().numpy() for parts in self._rows.values()]
        products = []
        for parameter in self._shapes:
            left, right = self._products[parameter]
            products.append(Product(parameter, numbers[left], None if right is None else numbers[right]))
        return arrays, products

    def norms(self) -> dict[str, float]:
        """The Euclidean norm of each product, by |A' B|^2 = the sum of (A A') * (B B'), [K, K], in float64."""
        rows = {name: torch.cat(parts).double() for name, parts in self._rows.items()}
        grams = {name: part @ part.t() for name, part in rows.items()}
        norms = {}
        for parameter in self._shapes:
            left, right = self._products[parameter]
            if right is None:
                norms[parameter] = float(torch.linalg.vector_norm(rows[left].sum(0)))
            else:
                norms[parameter] = math.sqrt(max(0.0, float((grams[left] * grams[right]).sum())))
        return norms


def factor_width(spec: ModelSpec) -> int:
    """How many numbers the factors of all parameters have for each step."""
    width = spec.output_size + spec.outputs_width
    if spec.conv_channels:
        width += spec.conv_channels + spec.input_size * spec.conv_width
    deltas = (2 if spec.cell == "gru" else 1) * GATES[spec.cell] * spec.hidden_size
    for layer in range(spec.num_layers):
        width += spec.outputs_width if layer else spec.conv_channels or spec.input_size
        width += spec.directions * (deltas + spec.hidden_size)
    return width
