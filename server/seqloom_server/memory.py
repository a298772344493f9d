"""Tells whether an error says that memory is short, which no fault of the server is: it lacks room for the work.

Python and NumPy raise MemoryError, the system ENOMEM. Torch raises its OutOfMemoryError for a GPU's own memory only,
and for the CPU's and that of oneDNN and CUDA's libraries a RuntimeError, which nothing but its text tells from a bug.
"""

import errno
import re

_TORCHS = "OutOfMemoryError"  # by name: torch is not imported here, as rpc asks, too
_TEXTS = (
    "can't allocate memory",  # torch's allocator of the CPU
    "not enough memory",  # the same on Windows
    "std::bad_alloc",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",  # cuDNN's from version 9 on
    "can't start new thread",  # whose stack finds no room
    "could not execute a primitive",  # oneDNN
)
# oneDNN's, too; a descriptor, which needs next to none, is not made where there is no code for it, which is a bug here
_CREATED = re.compile(r"could not create a (primitive|memory)(?! descriptor)")


def is_memory_short(error: BaseException | None) -> bool:
    """Returns whether the error says that memory, of the machine or of its device, is short."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return False
    if type(error).__name__ == _TORCHS:
        return True
    said = str(error)
    return any(text in said for text in _TEXTS) or _CREATED.search(said) is not None
