"""How much memory a process takes at most while something goes on."""

import contextlib
import threading
from collections.abc import Iterator

import psutil

from benchmarks.harness.rounds import Result

_EVERY = 0.005  # seconds


@contextlib.contextmanager
def peak_memory(pid: int, result: Result) -> Iterator[None]:
    """Adds the resident megabytes at the block's beginning, and the most within it."""
    memory = psutil.Process(pid).memory_info
    before = most = memory().rss
    over = threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(_EVERY):
            most = max(most, memory().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        result["before_mb"], result["peak_mb"] = before / 1e6, most / 1e6
