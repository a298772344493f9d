"""Chooses how the products with large weights are computed on this processor: measured once, and kept in a file.

oneDNN's packed weights took 0.3 to 0.8 of the time of torch's own products on an AMD EPYC, and 0.9 to 1.9 of it on an
Intel Xeon (docs/performance.md), so there is no choice that is right on both. One layout of the weights is kept, not
two, and where neither is clearly faster the one that needs no copy.
"""

import functools
import json
import logging
import math
import os
import pathlib
import platform
import threading
import time
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)

_WORTH = 2**19  # weights; for fewer, the calls of oneDNN cost more than packing saves
_ROWS = (1, 16, 64)  # few, some, many
_CLEARLY = 0.95  # of the time of torch's own products, in the geometric mean over these
_RUNS, _SECONDS = 9, 0.1  # of each product with each number of rows: at most

Measure = Callable[[torch.Tensor], float]


def packed_to_own(weight: torch.Tensor) -> float:
    """Returns the time of products with packed weights, as a share of that of torch's own; weight: [O, K], on the CPU.

    The geometric mean over few, some and many rows, of the least of several runs in turn, with this thread's OpenMP
    threads.
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    total = 0.0
    with torch.inference_mode():
        for count in _ROWS:
            rows = torch.rand(count, weight.shape[1]).to(weight.dtype)

            def by_packed(rows: torch.Tensor = rows) -> None:
                torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")

            def by_own(rows: torch.Tensor = rows) -> None:
                torch.mm(rows, weight.t())

            first, second = _least_seconds(by_packed, by_own)
            total += math.log(first / second)
    return math.exp(total / len(_ROWS))


def _least_seconds(*functions: Callable[[], None]) -> list[float]:
    least, until = [math.inf] * len(functions), time.perf_counter() + len(functions) * _SECONDS
    for run in range(_RUNS + 1):
        for number, function in enumerate(functions):
            start = time.perf_counter()
            function()
            if run:  # the first one makes what is needed
                least[number] = min(least[number], time.perf_counter() - start)
        if run and time.perf_counter() > until:
            break
    return least


class ProductChoices:
    """The choices made so far in this process; safe from many threads. measure: as packed_to_own()."""

    def __init__(self, measure: Measure = packed_to_own) -> None:
        self._measure = measure
        self._path: pathlib.Path | None = None
        self._shares: dict[str, float] = {}  # by _key(): as measured
        self._lock = threading.Lock()

    def keep_in(self, path: pathlib.Path) -> None:
        """Reads the choices kept in a file, and keeps later ones there. A file that cannot be read is replaced."""
        with self._lock:
            self._path = path
            self._shares |= _read(path)

    def packs(self, weight: torch.Tensor) -> bool:
        """Returns whether products with these weights are computed with a packed copy of them, on the CPU.

        The first time for its shape this takes up to a second, with this thread's OpenMP threads.
        """
        if weight.device.type != "cpu" or weight.numel() < _WORTH or not _can_pack(weight.dtype):
            return False
        with self._lock:
            key = _key(weight)
            if key not in self._shares:
                self._shares[key] = round(self._measure(weight), 3)
                log.info("products of %s: packed weights take %.2f of the time", key, self._shares[key])
                self._save()
            return self._shares[key] < _CLEARLY

    def _save(self) -> None:
        if self._path is None:
            return
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            kept = _read(self._path) | self._shares  # other servers write there, too
            new.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
            new.replace(self._path)
        except OSError as error:
            log.warning("%s: choices of products cannot be kept, they are measured again: %s", self._path, error)


choices = ProductChoices()  # facts about the processor, thus one for the process


def _key(weight: torch.Tensor) -> str:
    dtype = str(weight.dtype).removeprefix("torch.")
    sizes = "x".join(map(str, weight.shape))
    return f"{sizes} {dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}, {_processor()}"


@functools.cache
def _processor() -> str:
    """Returns the processor's name; on Linux platform.processor() knows none."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        parts = dict(line.partition(":")[::2] for line in reversed(lines))
        names = {key.strip(): value.strip() for key, value in parts.items()}
        return " ".join(names[key] for key in ("model name", "cpu family", "model", "stepping") if key in names)
    except OSError:
        return platform.processor() or platform.machine()


def _read(path: pathlib.Path) -> dict[str, float]:
    try:
        kept = json.loads(path.read_text())
        return {str(key): float(share) for key, share in dict(kept).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        log.warning("%s cannot be read, products are measured again: %s", path, error)
        return {}


@functools.cache
def _can_pack(dtype: torch.dtype) -> bool:
    """Returns whether this torch has packed products on this processor: they are not part of torch's public API."""
    # measured on x86 only
    if dtype not in (torch.float32, torch.bfloat16) or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        ones = torch.ones(2, 2, dtype=dtype)
        weight = torch.ops.mkldnn._reorder_linear_weight(ones)
        torch.ops.mkldnn._linear_pointwise(ones, weight, None, "none", [], "")
        torch.ops.mkldnn._linear_pointwise.binary(ones, ones.clone(), weight, None, "add")
    except (AttributeError, RuntimeError) as error:
        log.warning("no packed products of %s in this torch, slower ones are used: %s", dtype, error)
        return False
    return True
