"""Labels are the first of the largest logits, in every floating type."""

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seqloom_server.nn.forward.argmax_labels import labels_of

# few values, so that there are ties; zeros of both signs, and rows without a positive number
VALUES = st.sampled_from([-np.inf, -3.0e38, -2.5, -1.0, -0.0, 0.0, 1e-3, 1.0, 1.0078125, 2.5, np.inf])
ROWS = arrays.arrays("f4", arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=70), elements=VALUES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@given(rows=ROWS)
def test_it_is_the_first_of_the_largest(rows: np.ndarray, dtype: torch.dtype) -> None:
    logits = torch.from_numpy(rows).to(dtype)
    expected = [row.index(max(row)) for row in logits.double().tolist()]
    found = labels_of(logits)
    assert found.dtype is torch.int32
    assert found.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_classes_as_torch_finds_them(dtype: torch.dtype) -> None:
    logits = torch.randn(50, 6000, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[10:20] -= 100
    assert torch.equal(labels_of(logits), logits.argmax(1).int())


def test_no_rows() -> None:
    assert labels_of(torch.empty(0, 5)).tolist() == labels_of(torch.empty(0, 5, dtype=torch.bfloat16)).tolist() == []
