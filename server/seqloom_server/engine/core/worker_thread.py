"""Runs work on files and networks in a worker thread, beside the event loop; its errors become ServerErrors."""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, ParamSpec, TypeVar

from seqloom_server.engine.core.overload import model_memory_exhausted
from seqloom_server.errors import Reason, ServerError
from seqloom_server.memory import is_memory_short
from seqloom_server.nn.files.atomic_folder import BrokenFolder

P = ParamSpec("P")
R = TypeVar("R")

_WORKERS = min(32, (os.cpu_count() or 1) + 4)  # as many as asyncio has
_BROKEN = {"models": Reason.MODEL_BROKEN, "runs": Reason.CHECKPOINT_BROKEN}


def start_workers(initializer: Callable[[], None]) -> ThreadPoolExecutor:
    """Returns an executor whose threads have all been started. initializer: what each does first.

    One that is started later may find no memory for it. What it was to do is in the queue by then: another one would do
    it later, and its caller has been told that it was not done. Raises RuntimeError where they cannot be started.
    """
    executor = ThreadPoolExecutor(_WORKERS, thread_name_prefix="worker", initializer=initializer)
    together = threading.Barrier(_WORKERS)  # or the first would do it all
    try:
        for _ in range(_WORKERS):
            executor.submit(together.wait)
    except RuntimeError:
        together.abort()
        executor.shutdown(wait=False)
        raise
    return executor


async def in_worker_thread(
    folder: Literal["models", "runs"], function: Callable[P, R], *arguments: P.args, **keywords: P.kwargs
) -> R:
    """Runs a function to its end, even if the caller is cancelled. folder: that the function works on, for errors.

    Raises ServerError MODEL_BROKEN or CHECKPOINT_BROKEN for BrokenFolder, STORAGE_FAILED for OSError, and OVERLOADED if
    memory runs out; the original exception is the cause.
    """
    try:
        return await asyncio.shield(asyncio.to_thread(function, *arguments, **keywords))
    except BrokenFolder as error:
        raise ServerError(_BROKEN[folder], str(error)) from error
    except (OSError, MemoryError, RuntimeError) as error:
        if is_memory_short(error):
            raise model_memory_exhausted() from error
        if not isinstance(error, OSError):
            raise
        why = error.strerror or error
        raise ServerError(
            Reason.STORAGE_FAILED, f"the server cannot read or write its {folder} folder: {why}"
        ) from error
