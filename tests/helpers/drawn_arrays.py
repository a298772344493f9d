"""Arrays of every dtype and rank, for Hypothesis to draw."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from seqloom import tensors

DTYPES = ("<f4", ">f4", "<f8", ">f8", "<i4", ">i4")


@st.composite
def arrays(draw):
    """Arrays of every dtype and rank, also not contiguous, read-only, and of no elements."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=tensors.MAX_RANK, min_side=0, max_side=3))
    array = draw(hnp.arrays(draw(st.sampled_from(DTYPES)), shape))
    if draw(st.booleans()):
        array = array.transpose(draw(st.permutations(range(array.ndim))))
    if draw(st.booleans()):
        array = array[tuple(slice(None, None, draw(st.sampled_from([1, 2, -1]))) for _ in range(array.ndim))]
    return np.broadcast_to(array, (2, *array.shape)) if array.ndim < tensors.MAX_RANK and draw(st.booleans()) else array
