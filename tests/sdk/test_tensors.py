"""Tensors on the wire: every array comes back as it was, and what is malformed is MalformedTensor, nothing else."""

import numpy as np
import pytest
import torch
from helpers.drawn_arrays import arrays
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from seqloom import tensors
from seqloom.v1 import tensor_pb2

SIZES = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, 2, 2**31, 2**62, 2**63 - 1])


@given(arrays())
def test_every_array_comes_back_as_it_was(array):
    message = tensor_pb2.Tensor.FromString(tensors.encode(array).SerializeToString())
    decoded = tensors.decode(message)
    assert decoded.dtype == array.dtype.newbyteorder("<")
    assert decoded.shape == array.shape
    np.testing.assert_array_equal(decoded, array)
    assert message.data == array.astype(decoded.dtype).tobytes()


@given(hnp.arrays("<u4", hnp.array_shapes(min_dims=0, max_side=5), elements=st.integers(0, 2**32 - 1)))
def test_bfloat16_is_rounded_as_torch_rounds_it(bits):
    array = bits.view("<f4")
    expected = torch.from_numpy(array).bfloat16()
    message = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_BFLOAT16, shape=array.shape)
    message.data = tensors.to_bfloat16(array).tobytes()
    np.testing.assert_array_equal(tensors.decode(message), expected.float().numpy())  # a NaN equals another


def test_a_nan_of_the_lower_half_alone_and_a_number_beyond_float32_keep_their_kind_in_bfloat16():
    numbers = np.array([0x7F800001, 0xFFFFFFFF], "<u4").view("<f4")
    assert np.isnan(tensors.from_bfloat16(tensors.to_bfloat16(numbers))).all()
    beyond = tensors.from_bfloat16(tensors.to_bfloat16(np.array([1e300, -1e300, 3.4e38])))
    assert beyond.tolist() == [np.inf, -np.inf, np.inf]


def test_decoding_is_a_read_only_view():
    decoded = tensors.decode(tensors.encode(np.arange(4, dtype="f4")))
    assert not decoded.flags.writeable
    assert not decoded.flags.owndata


@pytest.mark.parametrize("dtype", ["f2", "i2", "u1", "c8", "?", "U1", "O"])
def test_other_dtypes_have_no_place_on_the_wire(dtype):
    with pytest.raises(TypeError, match="cannot be encoded"):
        tensors.encode(np.empty(2, dtype))


@given(st.integers(-(2**31), 2**31 - 1), st.lists(SIZES, max_size=12), st.binary(max_size=64))
def test_whatever_comes_is_an_array_or_malformed(data_type, shape, data):
    message = tensor_pb2.Tensor(data_type=data_type, shape=shape, data=data)
    try:
        array = tensors.decode(message)
    except tensors.MalformedTensor:
        return
    assert array.shape == tuple(shape)
    assert array.nbytes == len(data) * (2 if data_type == tensor_pb2.DATA_TYPE_BFLOAT16 else 1)


@given(st.sampled_from([1, 2, 3, 4]), st.lists(SIZES, max_size=9), st.binary(max_size=16))
def test_shapes_of_known_types_are_arrays_or_malformed(data_type, shape, data):
    test_whatever_comes_is_an_array_or_malformed.hypothesis.inner_test(data_type, shape, data)


@pytest.mark.parametrize(
    ("data_type", "shape", "data", "words"),
    [
        (0, [1], b"1234", "data_type is 0"),
        (99, [1], b"1234", "data_type is 99"),
        (1, [-1], b"1234", r"shape is \[-1\]"),
        (1, [-1, -1], b"1234", r"shape is \[-1, -1\]"),
        (1, [1] * 9, b"1234", "at most 8"),
        (1, [2], b"1234", r"data has 4 bytes: shape \[2\] of float32 takes 8"),
        (2, [1], b"1234", r"shape \[1\] of float64 takes 8"),
        (1, [], b"", r"shape \[\] of float32 takes 4"),
        (3, [1], b"12345", "data has 5 bytes"),
        (4, [3], b"1234", r"shape \[3\] of bfloat16 takes 6"),
        (1, [2**31, 2**31, 2**31], b"", "data has 0 bytes"),
        (1, [0, 2**62], b"", r"shape is \[0, 4611686018427387904\]"),
        (2, [2**63 - 1, 0, 2**63 - 1], b"", "shape is"),
    ],
)
def test_what_is_malformed_is_told_in_words(data_type, shape, data, words):
    with pytest.raises(tensors.MalformedTensor, match=words):
        tensors.decode(tensor_pb2.Tensor(data_type=data_type, shape=shape, data=data))


@given(st.integers(0, 300), st.integers(0, 300), st.sampled_from(["f4", "f8", "i4"]))
def test_a_truncated_message_is_malformed_as_a_message_or_as_a_tensor(steps, cut, dtype):
    whole = tensors.encode(np.ones(steps, dtype))
    whole.data = whole.data[: max(0, len(whole.data) - 1 - cut)]
    if steps:
        with pytest.raises(tensors.MalformedTensor):
            tensors.decode(whole)
