"""Runs work on files and networks in a worker thread, beside the event loop; its errors become ServerErrors."""

import asyncio
from collections.abc import Callable
from typing import Literal, ParamSpec, TypeVar

import torch

from seqloom_server.engine.core.overload import model_memory_exhausted
from seqloom_server.errors import Reason, ServerError
from seqloom_server.nn.files.atomic_folder import BrokenFolder

P = ParamSpec("P")
R = TypeVar("R")

_BROKEN = {"models": Reason.MODEL_BROKEN, "runs": Reason.CHECKPOINT_BROKEN}


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
    except OSError as error:
        why = error.strerror or error
        raise ServerError(
            Reason.STORAGE_FAILED, f"the server cannot read or write its {folder} folder: {why}"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise model_memory_exhausted() from error
        raise
