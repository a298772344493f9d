"""Captures kernels as CUDA graphs, and measures their time on the device.

Nothing of this has been run on a GPU yet: see docs/gpu.md.
"""

import logging
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)

Launch = Callable[[], object]
_TIMED_RUNS = 4


class Capture:
    """Captures kernels as CUDA graphs, which share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, run: Launch) -> Launch:
        """Returns a function that replays the kernels of `run`. Raises RuntimeError if they cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        here = torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            run()  # the first use loads kernels and allocates workspaces, which must not be captured
            # torch.cuda.graph() would empty the allocator's cache each time, while the device thread serves;
            # thread_local: that thread's launches are not errors of this capture
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                run()
            except BaseException:
                _abandon(graph)
                raise
            graph.capture_end()
        here.wait_stream(self._stream)
        return graph.replay


def _abandon(graph: torch.cuda.CUDAGraph) -> None:
    try:
        graph.capture_end()
    except RuntimeError:
        log.debug("the capture of a CUDA graph was abandoned", exc_info=True)


def device_seconds(run: Launch) -> float:
    """Returns the shortest of a few runs' times on the device, in seconds, by the device's clock."""
    run()
    seconds: list[float] = []
    for _ in range(_TIMED_RUNS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return min(seconds)
