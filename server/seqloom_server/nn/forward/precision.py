"""Sets the precision of float32 products on a GPU, full or TF32: a process-wide switch, held during launches.

A product has the precision that is set when it is launched; a captured CUDA graph keeps its precision. Between launches
the switch is at full precision, as training needs.
"""

import contextlib
import threading
from typing import Any

import torch

from seqloom_server.nn.spec import Precision

_lock = threading.RLock()  # warm-ups launch in other threads than the device thread
_NOTHING = contextlib.nullcontext()


class _Products(contextlib.AbstractContextManager[None]):
    def __init__(self, precision: Precision) -> None:
        self._tf32 = precision == "tf32"

    def __enter__(self) -> None:
        _lock.acquire()
        if self._tf32:
            allow_tf32(True)

    def __exit__(self, *_: object) -> None:
        if self._tf32:
            allow_tf32(False)
        _lock.release()


def products(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Returns a context to launch a network of that precision in; it is reusable, but must not be nested."""
    return _Products(precision) if device.type == "cuda" else _NOTHING


def allow_tf32(allow: bool) -> None:
    """Sets whether float32 products use TF32, 10 bits of each factor; torch's defaults differ between libraries.

    The sums of bfloat16 products stay in float32 either way.
    """
    backends: Any = torch.backends  # whose attributes differ between versions
    backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    if hasattr(backends.cudnn, "rnn"):  # torch 2.9 on; its older names must not be used beside these
        name = "tf32" if allow else "ieee"
        backends.cudnn.rnn.fp32_precision = backends.cudnn.conv.fp32_precision = name
        backends.cuda.matmul.fp32_precision = name
    else:
        backends.cudnn.allow_tf32 = backends.cuda.matmul.allow_tf32 = allow
