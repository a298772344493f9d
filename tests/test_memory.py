"""What says that memory is short, by the real errors of those who say so, and what does not."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from seqloom_server.memory import is_memory_short

MORE_THAN_THERE_IS = 1 << 60

# products of ever more rows, each of which oneDNN makes a primitive for, in a process that may map so many KiB more
_PRODUCTS = """
import pathlib, resource, sys, torch
from seqloom_server.memory import is_memory_short

torch.set_num_threads(1)
with torch.inference_mode():
    weight = torch.ops.mkldnn._reorder_linear_weight(torch.rand(1500, 1000).bfloat16())
    x = torch.rand(300, 1000).bfloat16()
    product = lambda rows: torch.ops.mkldnn._linear_pointwise(x[:rows], weight, None, "none", [], "")
    product(16)
    mapped = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (int(sys.argv[1]) << 10),) * 2)
    try:
        kept = [product(rows) for rows in range(48, 300, 16)]
    except RuntimeError as error:
        print(is_memory_short(error), error)
"""


def error_of(call):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which it is, is what is asked
        call()
    return caught.value


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8),
        lambda: np.empty(MORE_THAN_THERE_IS, np.uint8),
        lambda: bytearray(MORE_THAN_THERE_IS),
    ],
)
def test_what_torch_numpy_and_python_raise_says_so(call):
    assert is_memory_short(error_of(call))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
        RuntimeError("could not execute a primitive"),
        RuntimeError("could not create a memory object"),
    ],
)
def test_what_else_is_raised_for_it_says_so(error):
    assert is_memory_short(error)


@pytest.mark.parametrize(
    "error",
    [
        None,
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("could not create a primitive descriptor for a matmul primitive"),
        RuntimeError("could not create a memory descriptor by shapes"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("can't allocate memory"),
        SystemExit(),
    ],
)
def test_other_errors_do_not(error):
    assert not is_memory_short(error)


@pytest.mark.skipif(
    sys.platform != "linux" or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="limits of memory are Linux's, and not every processor has bfloat16",
)
@pytest.mark.parametrize("room", [0, 650, 1300])
def test_what_onednn_raises_says_so(room):
    """In a process of its own, whose memory is limited."""
    done = subprocess.run(
        [sys.executable, "-c", _PRODUCTS, str(room)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.startswith("True "), done.stdout


def test_a_tensor_of_a_wrong_size_does_not():
    assert not is_memory_short(error_of(lambda: torch.empty(-1)))
