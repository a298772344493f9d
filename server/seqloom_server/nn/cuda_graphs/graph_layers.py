"""Runs recurrent layers on a GPU as CUDA graphs, one for each bucket that was measured to be faster than cuDNN.

Launching a small kernel takes longer than running it. A graph is launched at once, however many kernels it has, but its
shapes and addresses are fixed: so rows are padded to a bucket and copied to the graph's buffers. All graphs of a
network share one set of buffers, since the device runs them one after the other.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from seqloom_server.nn.cuda_graphs.buckets import GRID, MAX_PADDING, Grid, Rectangle
from seqloom_server.nn.cuda_graphs.capture import Capture, Launch, device_seconds
from seqloom_server.nn.cuda_graphs.masked_layers import MaskedLayers, State
from seqloom_server.nn.forward.network import Network

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Graph:
    """The graph of a bucket. even, ragged: whether it is faster than cuDNN for equal, or unequal, lengths."""

    replay: Launch
    even: bool
    ragged: bool


class GraphLayers(MaskedLayers):
    """Recurrent layers captured as CUDA graphs; results are valid until the next call.

    record: captures the kernels that a function launches, and returns a function that replays them. seconds: measures a
    function's time on the device.
    """

    def __init__(
        self,
        network: Network,
        *,
        record: Callable[[Launch], Launch] | None = None,
        seconds: Callable[[Launch], float] | None = None,
        max_padding: float = MAX_PADDING,
        grid: Grid = GRID,
    ) -> None:
        super().__init__(network, max_padding=max_padding, grid=grid)
        self._network = network
        self._record = record or Capture()
        self._seconds = seconds or device_seconds
        # the largest first: the others reuse its memory
        self._sizes = [(steps, rows) for rows in reversed(grid.rows) for steps in reversed(grid.steps)]
        self._graphs: dict[tuple[int, int], _Graph] = {}
        spec, most = network.spec, grid.steps[-1] * grid.rows[-1]
        state = next(iter(network.parameters().values())).dtype

        def buffer(numbers: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(numbers, dtype=dtype, device=network.device)

        self._rows = buffer(most * spec.input_size, state)
        self._hidden = buffer(most * spec.hidden_size, self.dtype)
        self._left = buffer(grid.rows[-1], torch.int64)
        parts = len(spec.state_shapes())
        self._state = [buffer(spec.num_layers * grid.rows[-1] * spec.hidden_size, state) for _ in range(parts)]

    @property
    def nbytes(self) -> int:
        """Bytes of copies and buffers; those of the graphs themselves are unknown."""
        return super().nbytes + sum(part.nbytes for part in (self._rows, self._hidden, self._left, *self._state))

    def rectangle(self, batch_sizes: npt.NDArray[np.int64]) -> Rectangle | None:
        """Returns the rectangle to run a batch in, or None if cuDNN over packed rows is faster."""
        found = super().rectangle(batch_sizes)
        if found is None:
            return None
        even = batch_sizes[0] == batch_sizes[-1]
        for steps in set(found.blocks):
            graph = self._graphs.get((steps, found.rows))
            if graph is None or not (graph.even if even else graph.ragged):
                return None
        return found

    def prepare(self) -> None:
        """Captures every bucket and times it against cuDNN. After a failure cuDNN runs the remaining buckets."""
        start = time.perf_counter()
        for steps, rows in self._sizes:
            try:
                with self._network.products:
                    self._graphs[steps, rows] = self._prepared(steps, rows)
            except (RuntimeError, MemoryError) as error:
                log.warning("no CUDA graph of %d steps by %d rows, cuDNN is used instead: %s", steps, rows, error)
                break  # the others would fail as well, and each attempt takes time
        chosen = sum(graph.even or graph.ragged for graph in self._graphs.values())
        log.info(
            "captured %d CUDA graphs in %.1f s; %d are faster than cuDNN",
            len(self._graphs),
            time.perf_counter() - start,
            chosen,
        )

    @torch.inference_mode()
    def _prepared(self, steps: int, rows: int) -> _Graph:
        self._left.fill_(steps)
        replay = self._record(lambda: self._run(steps, rows))
        graph_seconds = self._seconds(replay)
        even = graph_seconds < self._seconds(self._cudnn(np.full(steps, rows, np.int64)))
        # with as much padding at its end as the scheduler allows a slice
        ragged_sizes = np.ceil(np.linspace(rows, max(1, rows // 2), steps)).astype(np.int64)
        ragged = graph_seconds < self._seconds(self._cudnn(ragged_sizes))
        return _Graph(replay, even, ragged)

    def _cudnn(self, batch_sizes: npt.NDArray[np.int64]) -> Launch:
        """Returns a function that runs a batch of these sizes by cuDNN."""
        spec, count = self.spec, int(batch_sizes[0])
        rows = self._rows[: int(batch_sizes.sum()) * spec.input_size].view(-1, spec.input_size)
        state = tuple(
            part[: part.numel() // len(self._left) * count].view(-1, count, spec.hidden_size) for part in self._state
        )
        sizes = torch.from_numpy(batch_sizes)
        return lambda: self._network.advance(rows, sizes, state)

    def _views(self, steps: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, State]:
        """Returns rows, hidden, left and state of a bucket, views of the beginnings of the buffers."""
        spec = self.spec
        return (
            self._rows[: steps * rows * spec.input_size].view(steps, rows, -1),
            self._hidden[: steps * rows * spec.hidden_size].view(steps, rows, -1),
            self._left[:rows],
            tuple(
                part[: spec.num_layers * rows * spec.hidden_size].view(spec.num_layers, rows, -1)
                for part in self._state
            ),
        )

    def _run(self, steps: int, rows: int) -> None:
        """Runs a block from the buffers into the buffers, ready for the next block; this is captured."""
        inputs, hidden, left, state = self._views(steps, rows)
        _, after = self.block(inputs, left, state, out=hidden)
        for part, new in zip(state, after, strict=True):
            part.copy_(new)
        left.sub_(steps)

    def _blocks(
        self, rows: torch.Tensor, shape: Rectangle, left: torch.Tensor, state: State
    ) -> tuple[torch.Tensor, State]:
        _, hidden, left_buffer, state_buffers = self._views(shape.blocks[0], shape.rows)
        left_buffer.copy_(left)
        for buffer, part in zip(state_buffers, state, strict=True):
            buffer.copy_(part)
        if len(shape.blocks) > 1:
            hidden = hidden.new_empty(shape.steps, shape.rows, self.spec.hidden_size)
        start = 0
        for steps in shape.blocks:
            inputs, out, _, _ = self._views(steps, shape.rows)
            inputs.copy_(rows[start : start + steps])
            self._graphs[steps, shape.rows].replay()
            if len(shape.blocks) > 1:
                hidden[start : start + steps].copy_(out)
            start += steps
        return hidden, state_buffers
