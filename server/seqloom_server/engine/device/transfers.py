"""Copies the inputs of a slice to the device and its results back, on a GPU beside the computing.

On a GPU all copies go through pinned memory, on CUDA streams of their own, and a slice waits once, for its results. All
computing runs on the device's default stream, in the order of its launches, together with what other threads launch.
Torch keeps freed pinned memory, and reuses it once the copies that it was used for are done.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from seqloom_server.engine.core.sequence import Array
from seqloom_server.engine.device.row_packing import Index


class Transfer(Protocol):
    """The copies of one slice: first those to the device, then begin(), the computing, end(), wait()."""

    def stack(self, parts: list[Array], axis: int = 0) -> torch.Tensor:
        """Returns the arrays on the device, concatenated; not to be written to."""

    def indices(self, arrays: Sequence[Index | None]) -> list[torch.Tensor | None]:
        """Returns the indices on the device, None for None."""

    def begin(self) -> None:
        """Makes the computing that is launched from here on wait for the copies."""

    def end(self, results: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the CPU tensors that the results are copied to, once all the computing has been launched."""

    def computed(self) -> None:
        """Waits until the device has computed; results may still be copied."""

    def wait(self) -> float | None:
        """Waits for the results; returns the device time in seconds, None if the caller's clock measures it as well."""


class Staging(Protocol):
    """The copies between one device and the CPU.

    apart: the device computes asynchronously, and results are in memory that is reused.
    """

    apart: bool

    def open(self) -> Transfer:
        """Returns the transfer of one slice."""

    def timer(self) -> Callable[[], float]:
        """Starts a timer; returns a function that waits for all work launched since, and returns its seconds."""


class InPlace:
    """The staging of the CPU: nothing is copied or waited for."""

    apart = False

    def open(self) -> Transfer:
        return self

    def timer(self) -> Callable[[], float]:
        start = time.monotonic()
        return lambda: time.monotonic() - start

    def stack(self, parts: list[Array], axis: int = 0) -> torch.Tensor:
        return torch.from_numpy(_Unlocked.view(parts[0]) if len(parts) == 1 else np.concatenate(parts, axis=axis))

    def indices(self, arrays: Sequence[Index | None]) -> list[torch.Tensor | None]:
        return [None if array is None else torch.from_numpy(array) for array in arrays]

    def begin(self) -> None:
        pass

    def end(self, results: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return list(results)

    def computed(self) -> None:
        pass

    def wait(self) -> float | None:
        return None


class _Unlocked:
    """Shares the memory of a read-only array, such as a view on a message: torch knows none, and warns."""

    def __init__(self, array: Array) -> None:
        self._array = array  # kept alive by the view
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}

    @classmethod
    def view(cls, array: Array) -> Array:
        """Returns a view of an array to which nobody may write."""
        return array if array.flags.writeable else np.asarray(cls(array))


class Pinned:
    """The staging of a GPU, with a CUDA stream for each direction: results do not wait for another slice's frames."""

    apart = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.compute = torch.cuda.default_stream(device)
        self.inward = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.outward = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def open(self) -> Transfer:
        return _PinnedTransfer(self)

    def timer(self) -> Callable[[], float]:
        start, end = _event(), _event()
        start.record(self.compute)

        def stop() -> float:
            end.record(self.compute)
            end.synchronize()
            return _seconds(start, end)

        return stop


def _event() -> torch.cuda.Event:
    # blocking: a waiting thread sleeps, and leaves its core to the event loop
    return torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]


def _seconds(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1e3


class _PinnedTransfer:
    def __init__(self, staging: Pinned) -> None:
        self._staging = staging
        self._started, self._computed, self._copied = _event(), _event(), _event()

    def _to_device(self, host: torch.Tensor) -> torch.Tensor:
        with torch.cuda.stream(self._staging.inward):
            copy = host.to(self._staging.device, non_blocking=True)
        copy.record_stream(self._staging.compute)
        return copy

    def stack(self, parts: list[Array], axis: int = 0) -> torch.Tensor:
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        host = torch.empty(shape, dtype=getattr(torch, parts[0].dtype.name), pin_memory=True)
        np.concatenate(parts, axis=axis, out=host.numpy())
        return self._to_device(host)

    def indices(self, arrays: Sequence[Index | None]) -> list[torch.Tensor | None]:
        present = [array for array in arrays if array is not None]
        parts = iter(torch.split(self.stack(present), [len(array) for array in present]))
        return [None if array is None else next(parts) for array in arrays]

    def begin(self) -> None:
        self._staging.compute.wait_stream(self._staging.inward)
        self._started.record(self._staging.compute)

    def end(self, results: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        outward = self._staging.outward
        self._computed.record(self._staging.compute)
        outward.wait_event(self._computed)
        hosts = []
        with torch.cuda.stream(outward):
            for result in results:
                host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
                hosts.append(host.copy_(result, non_blocking=True))
                result.record_stream(outward)
        self._copied.record(outward)
        return hosts

    def computed(self) -> None:
        self._computed.synchronize()

    def wait(self) -> float | None:
        self._copied.synchronize()
        return _seconds(self._started, self._computed)


def staging_of(device: str) -> Staging:
    """Returns the staging of "cpu" or "cuda"."""
    return Pinned(torch.device(device, torch.cuda.current_device())) if device == "cuda" else InPlace()
