"""Everything here needs a CUDA device and is skipped where there is none."""

import pathlib

import pytest
import torch

_HERE = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(items):
    absent = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.path.parent == _HERE:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(absent)
