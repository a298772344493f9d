"""Everything here needs a CUDA device and is skipped where there is none; helpers are those of the engine and nn."""

import pathlib
import sys

import pytest
import torch

_HERE = pathlib.Path(__file__).parent
sys.path += [str(_HERE.parent / name) for name in ("engine", "nn")]


def pytest_collection_modifyitems(items):
    absent = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.path.parent == _HERE:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(absent)
