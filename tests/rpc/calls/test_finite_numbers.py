"""What is no finite number is refused by its place, and every finite number is taken, however it looks in bytes."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from seqloom import tensors
from seqloom.v1 import tensor_pb2
from seqloom_server.errors import Reason, ServerError
from seqloom_server.rpc.calls import converters

LARGE = np.finfo("f4").max
FEW = converters._SMALL_BYTES // 4  # numbers that are looked at in one way; more of them in another


@given(
    st.sampled_from(["float32", "float64", "bfloat16"]),
    st.sampled_from([1, 2, 7, FEW, FEW + 1, 2 * FEW, 2 * FEW + 1]),
    st.lists(st.tuples(st.integers(0, 2**20), st.floats(width=16) | st.sampled_from([LARGE, -LARGE, np.nan, np.inf]))),
)
@example("float32", 3, [(1, LARGE)])
@example("bfloat16", 2, [(0, np.inf)])
@example("bfloat16", 2, [(1, -np.nan)])
def test_only_finite_numbers_are_taken(dtype, count, placed):
    array = np.random.default_rng(0).standard_normal(count)
    for place, value in placed:
        array[place % count] = value
    if dtype == "bfloat16":
        bits = tensors.to_bfloat16(array.astype("f4"))
        message = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_BFLOAT16, shape=[count], data=bits.tobytes())
        array = tensors.from_bfloat16(bits)
    else:
        array = array.astype(dtype)
        message = tensors.encode(array)
    wrong = np.flatnonzero(~np.isfinite(array))
    model = "float64" if dtype == "float64" else "float32"
    if not len(wrong):
        np.testing.assert_array_equal(converters.array(message, model, "field"), array)
        return
    with pytest.raises(ServerError) as caught:
        converters.array(message, model, "field")
    assert caught.value.reason is Reason.INVALID_FIELD
    assert f"at [{wrong[0]}]" in caught.value.message
