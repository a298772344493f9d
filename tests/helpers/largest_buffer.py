"""The largest tensor that torch makes while something runs."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LargestBuffer(TorchDispatchMode):
    """Records the bytes of the largest storage that any operation makes."""

    def __init__(self):
        super().__init__()
        self.sizes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return result
