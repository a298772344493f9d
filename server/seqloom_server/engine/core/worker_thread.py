"""Work on files and networks in a worker thread, so that the event loop goes on; its errors are ServerErrors."""

import asyncio
from collections.abc import Callable
from typing import Literal, ParamSpec, TypeVar

import torch

from seqloom_server.engine.core.overload import no_memory_for_the_model
from seqloom_server.errors import Reason, ServerError
from seqloom_server.nn.files.atomic_folder import BrokenFolder

P = ParamSpec("P")
R = TypeVar("R")

_BROKEN = {"models": Reason.MODEL_BROKEN, "runs": Reason.CHECKPOINT_BROKEN}


async def in_worker_thread(
    of: Literal["models", "runs"], function: Callable[P, R], *arguments: P.args, **keywords: P.kwargs
) -> R:
    """Runs a function to its end, also where its caller goes away. of: what the folder at hand is of.

    Raises ServerError MODEL_BROKEN or CHECKPOINT_BROKEN for BrokenFolder, STORAGE_FAILED for OSError, which is the
    cause then, and OVERLOADED where there is no memory.
    """
    try:
        return await asyncio.shield(asyncio.to_thread(function, *arguments, **keywords))
    except BrokenFolder as error:
        raise ServerError(_BROKEN[of], str(error)) from error
    except OSError as error:
        why = error.strerror or error
        raise ServerError(Reason.STORAGE_FAILED, f"the server's folder of {of} failed: {why}") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise no_memory_for_the_model() from error
        raise
