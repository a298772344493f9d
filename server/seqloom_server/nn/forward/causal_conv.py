"""The causal convolution before the first layer, over packed rows: y_t = relu(sum_j K_j x_(t-width+1+j) + b).

The last `width` inputs of every step are copied side by side ("columns"), so that the convolution of all steps is one
product with the kernel, conv.weight [C, D, width] viewed as [C, D * width]. Packed rows: sequences longest first,
time-major, step t the first batch_sizes[t] of them. The inputs before the first step are the state part "inputs",
[width - 1, N, D], oldest first; its rows followed by the packed rows are a batch's "source".
"""

import numpy as np
import numpy.typing as npt
import torch

Index = npt.NDArray[np.int64]


class Unfolding:
    """The indices of one batch's columns in its source, computed once for the forward and backward pass.

    batch_sizes: int64 [T], descending from N, none 0. width: of the kernel, at least 1.
    """

    def __init__(self, batch_sizes: Index, width: int, device: torch.device) -> None:
        self.width = width
        self.count = int(batch_sizes[0])  # N
        self.cells = int(batch_sizes.sum())
        before = width - 1
        # step t of the source, the state's steps included, begins at starts[t]
        sizes = np.concatenate([np.full(before, self.count), batch_sizes])
        starts = np.cumsum(sizes) - sizes
        steps = np.repeat(np.arange(len(batch_sizes)), batch_sizes)  # [cells], of each packed row
        ranks = np.arange(self.cells) - np.repeat(starts[before:] - before * self.count, batch_sizes)
        taps = starts[steps[:, None] + np.arange(width)] + ranks[:, None]  # [cells, width]
        lengths = np.searchsorted(-batch_sizes, -np.arange(self.count), side="left")
        last = starts[lengths + np.arange(before)[:, None]] + np.arange(self.count)  # [width - 1, N]
        self._taps, self._last = _to_device(taps, device), _to_device(last.reshape(-1), device)

    def source(self, rows: torch.Tensor, inputs: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the source, [(width - 1) N + cells, D], of packed rows [cells, D] and the state part, or zeros."""
        if self.width == 1:
            return rows
        if inputs is None:
            inputs = rows.new_zeros(self.width - 1, self.count, rows.shape[1])
        return torch.cat([inputs.flatten(0, 1), rows])

    def columns(self, source: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Returns the columns, [rows, D * width], of the packed rows in [start, stop), by default all."""
        taps = self._taps[start:stop]
        if self.width == 1:
            return source[start:stop]
        columns = source.index_select(0, taps.reshape(-1)).view(len(taps), self.width, source.shape[1])
        return columns.transpose(1, 2).flatten(1)

    def final_inputs(self, source: torch.Tensor) -> torch.Tensor:
        """Returns the state part after the batch, [width - 1, N, D]: the last inputs of each sequence."""
        return source.index_select(0, self._last).view(self.width - 1, self.count, source.shape[1])

    def fold_(self, d_source: torch.Tensor, d_columns: torch.Tensor, start: int = 0) -> None:
        """Adds the gradient of the columns, of packed rows from `start` on, to the gradient of the source."""
        taps = self._taps[start : start + len(d_columns)]
        parts = d_columns.view(len(taps), d_source.shape[1], self.width)
        for tap in range(self.width):  # each tap adds at most once to a source row, so the order of sums is fixed
            d_source.index_add_(0, taps[:, tap], parts[:, :, tap])

    def fold_final_(self, d_source: torch.Tensor, d_final: torch.Tensor) -> None:
        """Adds the gradient of the state part after the batch, [width - 1, N, D], to that of the source."""
        d_source.index_add_(0, self._last, d_final.reshape(len(self._last), d_source.shape[1]))

    def split(self, d_source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the two parts of a source's gradient, views: packed rows [cells, D], state part [width - 1, N, D]."""
        before = (self.width - 1) * self.count
        return d_source[before:], d_source[:before].view(self.width - 1, self.count, d_source.shape[1])


def _to_device(index: Index, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(index)
    # from pinned memory: other copies wait until a GPU has finished all its work
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def forward(
    columns: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns relu(columns K' + b), [rows, C], in `out` if given. weight: [C, D, width]; bias: [C]."""
    return torch.addmm(bias, columns, weight.flatten(1).t(), out=out).relu_()
