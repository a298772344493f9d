"""Gives each caller its own rows of the factors that a batch makes, and bounds all products of them."""

import math
from dataclasses import dataclass

import torch

from seqloom_server.nn.gradients.gradient_factors import FactorSink
from seqloom_server.nn.recurrence.packed_rows import PackedRows
from seqloom_server.nn.recurrence.yield_points import Pieces


@dataclass(slots=True)
class FactorRoute:
    """A sink and its rows of the batch, from `start` to `stop` in the sequences' own order; None: all, in any order."""

    sink: FactorSink
    start: int | None = None
    stop: int | None = None

    def overlap(self, start: int, stop: int) -> slice | None:
        """Where its rows lie among those from `start` to `stop`; None where it has none there."""
        if self.start is None or self.stop is None:
            return slice(0, stop - start)
        low, high = max(start, self.start), min(stop, self.stop)
        return slice(low - start, high - start) if low < high else None


class FactorRoutes:
    """All routes of one batch. largest: no element of any gradient made of their factors is larger; or NaN."""

    def __init__(self, routes: list[FactorRoute], packed: PackedRows) -> None:
        self._all = routes
        self._own = any(each.start is not None for each in routes)
        self._from_packed = packed.from_packed
        self._most_rows = math.sqrt(packed.cells)
        self._norms: dict[str, torch.Tensor] = {}
        self.largest = 0.0

    def __bool__(self) -> bool:
        return bool(self._all)

    def put(self, name: str, rows: torch.Tensor) -> None:
        """Gives packed rows [cells, width] to every sink."""
        if not self._all:
            return
        self._norms[name] = torch.linalg.vector_norm(rows)
        # in the sequences' own order once for all: there a call's rows are neighbours, and a view will do
        ordered = rows.index_select(0, self._from_packed) if self._own else rows
        for each in self._all:
            each.sink.put(name, rows if each.start is None else ordered[each.start : each.stop])

    def multiply(self, weight: str, bias: str, left: str, right: str) -> Pieces:
        """Has every sink multiply its rows of two factors."""
        if self._all:
            self._bound(left, right)
        for each in self._all:
            yield from each.sink.multiply(weight, bias, left, right)

    def release(self) -> None:
        """Frees the factors that were put."""
        for each in self._all:
            each.sink.release()

    def multiply_chunk(
        self, weight: str, bias: str, left: tuple[str, torch.Tensor], right: tuple[str, torch.Tensor], start: int
    ) -> Pieces:
        """The same for two factors of rows in the sequences' own order, from row `start` on, in buffers used again."""
        for name, rows in (left, right) if self._all else ():
            self._norms[name] = torch.linalg.vector_norm(rows)
        if self._all:
            self._bound(left[0], right[0])
        for each in self._all:
            own = each.overlap(start, start + len(left[1]))
            if own is None:
                continue
            for name, rows in (left, right):
                each.sink.put(name, rows[own])
            yield from each.sink.multiply(weight, bias, left[0], right[0])
            each.sink.release()

    def _bound(self, left: str, right: str) -> None:
        # by Cauchy and Schwarz, of all rows and of any part of them; the least, for the bias, is that of ones
        self.largest += float(self._norms[left]) * max(float(self._norms[right]), self._most_rows)
