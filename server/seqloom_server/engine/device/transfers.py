"""How the numbers of a slice come to the device, and its results from there: copied beside the computing, or in place.

On a GPU everything goes through pinned memory on streams of its own, and the one wait of a slice is for its results.
What computes runs on the device's default stream, in the order in which it was launched, with whatever other threads
launch. Torch keeps freed pinned memory, and hands it out again once the copies that it was used for are done.
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
        """Returns the arrays on the device, one behind the other; they may be read-only."""

    def indices(self, arrays: Sequence[Index | None]) -> list[torch.Tensor | None]:
        """Returns the indices on the device, None for None."""

    def begin(self) -> None:
        """What was copied is there for the computing from here on."""

    def end(self, results: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns where the results will be on the CPU; all the computing has been launched."""

    def computed(self) -> None:
        """Waits until the device has computed, though results may still be on their way."""

    def wait(self) -> float | None:
        """Waits for the results; returns the seconds that the device computed, None where the clock tells as well."""


class Staging(Protocol):
    """The copies between one device and the CPU. apart: results lie in memory that is lent, and come after a wait."""

    apart: bool

    def open(self) -> Transfer:
        """Returns the transfer of one more slice."""

    def timer(self) -> Callable[[], float]:
        """Returns what waits until all that is launched from now on is computed, and tells how long that took."""


class InPlace:
    """Where the device is the CPU: nothing is copied, and nothing is waited for."""

    apart = False

    def open(self) -> Transfer:
        return self

    def timer(self) -> Callable[[], float]:
        start = time.monotonic()
        return lambda: time.monotonic() - start

    def stack(self, parts: list[Array], axis: int = 0) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts, axis=axis))

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


class Pinned:
    """A GPU's copies, those in and those out each on a stream: a slice's results do not wait for another's frames."""

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
    # a thread that waits sleeps: the event loop has a use for its core
    return torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]


def _seconds(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1e3


class _PinnedTransfer:
    def __init__(self, staging: Pinned) -> None:
        self._staging = staging
        self._started, self._computed, self._there = _event(), _event(), _event()

    def _copied(self, host: torch.Tensor) -> torch.Tensor:
        with torch.cuda.stream(self._staging.inward):
            there = host.to(self._staging.device, non_blocking=True)
        there.record_stream(self._staging.compute)
        return there

    def stack(self, parts: list[Array], axis: int = 0) -> torch.Tensor:
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        host = torch.empty(shape, dtype=getattr(torch, parts[0].dtype.name), pin_memory=True)
        np.concatenate(parts, axis=axis, out=host.numpy())
        return self._copied(host)

    def indices(self, arrays: Sequence[Index | None]) -> list[torch.Tensor | None]:
        given = [array for array in arrays if array is not None]
        parts = iter(torch.split(self.stack(given), [len(array) for array in given]))
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
        self._there.record(outward)
        return hosts

    def computed(self) -> None:
        self._computed.synchronize()

    def wait(self) -> float | None:
        self._there.synchronize()
        return _seconds(self._started, self._computed)


def staging_of(device: str) -> Staging:
    """Returns the copies for "cpu" or "cuda"."""
    return Pinned(torch.device(device, torch.cuda.current_device())) if device == "cuda" else InPlace()
