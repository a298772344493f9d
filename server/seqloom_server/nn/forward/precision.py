"""In which precision a GPU multiplies float32: a switch of the whole process, held while a network's work is launched.

The products of a launch are of the precision that is set then, whenever they run; a recorded graph keeps it. Between
launches everything is in full, which is what training needs.
"""

import contextlib
import threading
from typing import Any

import torch

from seqloom_server.nn.spec import Precision

_held = threading.RLock()  # a model's first runs are launched by another thread than the device's
_NOTHING = contextlib.nullcontext()


class _Products(contextlib.AbstractContextManager[None]):
    def __init__(self, precision: Precision) -> None:
        self._tf32 = precision == "tf32"

    def __enter__(self) -> None:
        _held.acquire()
        if self._tf32:
            allow_tf32(True)

    def __exit__(self, *_: Any) -> None:
        if self._tf32:
            allow_tf32(False)
        _held.release()


def products(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which a network of that precision is launched; it may be entered again, not in itself."""
    return _Products(precision) if device.type == "cuda" else _NOTHING


def allow_tf32(allow: bool) -> None:
    """Sets whether float32 is multiplied with 10 bits of each factor; torch's own choice differs from place to place.

    The sums of bfloat16's products stay in float32 either way.
    """
    backends: Any = torch.backends
    backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    if hasattr(backends.cudnn, "rnn"):  # torch 2.9 on; its older names must not be used beside these
        name = "tf32" if allow else "ieee"
        backends.cudnn.rnn.fp32_precision = backends.cudnn.conv.fp32_precision = name
        backends.cuda.matmul.fp32_precision = name
    else:
        backends.cudnn.allow_tf32 = backends.cuda.matmul.allow_tf32 = allow
