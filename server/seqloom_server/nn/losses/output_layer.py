"""The output layer in training: logits, losses and dL/do, in chunks of rows, so that [rows, O] buffers are bounded."""

import itertools
from collections.abc import Callable, Generator, Iterator

import numpy as np
import torch

from seqloom_server.nn.forward.outputs import chunk_rows
from seqloom_server.nn.losses import ctc
from seqloom_server.nn.losses import row_losses as losses
from seqloom_server.nn.losses.training_example import Array, Example, stack_rows
from seqloom_server.nn.recurrence.yield_points import FLOPS_PER_ELEMENT, Pieces, YieldBudget, product

# Takes the first row of a chunk and dL/do of its rows, in a buffer that is reused.
UseGradient = Callable[[int, torch.Tensor], Pieces]


class OutputLayer:
    """The output layer of one batch: o = hidden V' + c, rows in sequence-major order.

    hidden: [rows, H]. weight: V, [O, H]; bias: c, [O]. use: called with dL/do of every row once, chunk by chunk; None
    to compute only the losses.
    """

    def __init__(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        examples: list[Example],
        budget: YieldBudget,
        use: UseGradient | None,
    ) -> None:
        self._hidden, self._weight, self._bias = hidden, weight, bias
        self._examples = examples
        self._budget = budget
        self._use = use
        self._ends = np.cumsum([len(example.xs) for example in examples])
        self._starts = self._ends - [len(example.xs) for example in examples]
        most = chunk_rows(len(weight), hidden.element_size())
        self._buffer = hidden.new_empty(min(most, len(hidden)), len(weight))
        self._row_losses = np.zeros(len(hidden))

    def run(self) -> Generator[None, None, Array]:
        """Returns the loss of each sequence, [N] float64."""
        result = np.zeros(len(self._examples))
        for kind, group in itertools.groupby(range(len(self._examples)), lambda n: self._examples[n].loss):
            members = list(group)
            first, last = int(self._starts[members[0]]), int(self._ends[members[-1]])
            if kind == "ctc":
                result[members] = yield from self._ctc(members, first, last)
                continue
            for start in range(first, last, len(self._buffer)):
                yield from self._chunk(kind, start, min(start + len(self._buffer), last))
        result += np.add.reduceat(self._row_losses, self._starts)
        return np.asarray(result * [example.scale for example in self._examples])

    def _chunk(self, kind: str | None, start: int, stop: int) -> Pieces:
        d_o = self._buffer[: stop - start]
        if kind is None:
            if self._use is None:
                return
            stack_rows(self._rows(lambda example: example.output_gradients, start, stop), d_o)
        else:
            yield from self._logits(start, stop)
            for part, rows in self._parts(start, stop):
                if kind == "mse":
                    targets = stack_rows(
                        self._rows(lambda example: example.targets, rows.start, rows.stop), torch.empty_like(part)
                    )
                    row_losses = losses.mse_(part, targets)
                else:
                    labels = np.concatenate(self._rows(lambda example: example.targets, rows.start, rows.stop))
                    index = torch.from_numpy(labels.astype(np.int64)).to(part.device)
                    row_losses = losses.cross_entropy_(part, index)
                self._row_losses[rows] = row_losses.cpu().numpy()
                if self._budget.due(self._flops * len(part)):
                    yield
        if self._use is not None:
            self._scale(d_o, start, stop)
            yield from self._use(start, d_o)

    def _ctc(self, members: list[int], first: int, last: int) -> Generator[None, None, Array]:
        alignments = {
            n: ctc.Alignment(np.asarray(self._examples[n].targets), len(self._examples[n].xs), self._hidden)
            for n in members
        }
        whole = last - first <= len(self._buffer)
        for chunk in range(first, last, len(self._buffer)):
            end = min(chunk + len(self._buffer), last)
            yield from self._logits(chunk, end)
            for part, rows in self._parts(chunk, end):
                torch.log_softmax(part, 1, out=part)
                for n, steps, place in self._sequences(rows.start, rows.stop):
                    torch.index_select(part[place], 1, alignments[n].columns, out=alignments[n].rows[steps])
                if self._budget.due(self._flops * len(part)):
                    yield
        yield from ctc.differentiate(list(alignments.values()), self._budget)
        for start in range(first, last, len(self._buffer)) if self._use is not None else ():
            stop = min(start + len(self._buffer), last)
            d_o = self._buffer[: stop - start]
            if not whole:
                yield from self._logits(start, stop)
            for part, rows in self._parts(start, stop):
                if not whole:
                    torch.log_softmax(part, 1, out=part)
                part.exp_()
                for n, steps, place in self._sequences(rows.start, rows.stop):
                    part[place].index_copy_(1, alignments[n].columns, alignments[n].rows[steps])
                if self._budget.due(self._flops * len(part)):
                    yield
            self._scale(d_o, start, stop)
            assert self._use is not None
            yield from self._use(start, d_o)
        return np.array([alignments[n].loss for n in members])

    @property
    def _flops(self) -> float:
        """The cost of the functions of one row's outputs."""
        return FLOPS_PER_ELEMENT * len(self._weight)

    def _logits(self, start: int, stop: int) -> Pieces:
        """Computes a chunk's outputs in the buffer."""
        out = self._buffer[: stop - start]
        return product(self._budget, out, self._hidden[start:stop], self._weight.t(), bias=self._bias)

    def _parts(self, start: int, stop: int) -> Iterator[tuple[torch.Tensor, slice]]:
        """Splits a chunk into parts between which to yield: rows of the buffer, and their row numbers."""
        block = self._budget.block(self._flops, stop - start)
        for first in range(start, stop, block):
            rows = slice(first, min(first + block, stop))
            yield self._buffer[rows.start - start : rows.stop - start], rows

    def _scale(self, d_o: torch.Tensor, start: int, stop: int) -> None:
        for n, _, place in self._sequences(start, stop):
            if self._examples[n].scale != 1:
                d_o[place].mul_(self._examples[n].scale)

    def _sequences(self, start: int, stop: int) -> list[tuple[int, slice, slice]]:
        """Returns the sequences with rows in [start, stop): number, its steps there, their place relative to start."""
        first = int(np.searchsorted(self._ends, start, side="right"))
        found = []
        for n in range(first, len(self._examples)):
            low, high = max(start, int(self._starts[n])), min(stop, int(self._ends[n]))
            if low >= high:
                break
            begin = int(self._starts[n])
            found.append((n, slice(low - begin, high - begin), slice(low - start, high - start)))
        return found

    def _rows(self, array_of: Callable[[Example], Array | None], start: int, stop: int) -> list[Array]:
        """Returns the rows in [start, stop) of an array of each example."""
        arrays = [(array_of(self._examples[n]), steps) for n, steps, _ in self._sequences(start, stop)]
        return [array[steps] for array, steps in arrays if array is not None]
