"""Numpy arrays to and from the wire's tensors: the one module that the SDK and the server share.

A tensor is its data type, its shape, and its elements in C order, little-endian. Decoding is a view on the message's
bytes, never a copy, and so read-only.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from seqloom.v1 import tensor_pb2

Array = npt.NDArray[Any]

MAX_RANK = 8

_DTYPES: dict[int, np.dtype[Any]] = {
    tensor_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DATA_TYPE_FLOAT64: np.dtype("<f8"),
    tensor_pb2.DATA_TYPE_INT32: np.dtype("<i4"),
}
_TYPES: dict[np.dtype[Any], Any] = {dtype: data_type for data_type, dtype in _DTYPES.items()}


class MalformedTensor(ValueError):
    """A tensor message whose type, shape and bytes do not belong together; the text says which."""


def encode_into(array: Array, tensor: tensor_pb2.Tensor) -> None:
    """Fills an empty tensor message with an array of float32, float64 or int32, of any shape and layout.

    Into a message that stands in its place already, since protobuf copies what is put together from parts.
    Raises TypeError for another dtype.
    """
    data_type = _TYPES.get(array.dtype.newbyteorder("<"))
    if data_type is None:
        raise TypeError(f"dtype {array.dtype} has no place on the wire: float32, float64 or int32")
    tensor.data_type = data_type
    tensor.shape.extend(array.shape)
    tensor.data = array.astype(_DTYPES[data_type], copy=False).tobytes()


def encode(array: Array) -> tensor_pb2.Tensor:
    """Returns the tensor message of an array; see encode_into."""
    tensor = tensor_pb2.Tensor()
    encode_into(array, tensor)
    return tensor


def decode(tensor: tensor_pb2.Tensor) -> Array:
    """Returns a read-only view on a tensor message. Raises MalformedTensor."""
    dtype = _DTYPES.get(tensor.data_type)
    if dtype is None:
        raise MalformedTensor(f"data_type is {tensor.data_type}: expected FLOAT32, FLOAT64 or INT32")
    shape, data = tuple(tensor.shape), tensor.data
    if len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise MalformedTensor(f"shape is {list(shape)[:MAX_RANK]}: expected at most {MAX_RANK} sizes, none negative")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise MalformedTensor(
            f"data has {len(data)} bytes: shape {list(shape)} of {dtype.name} takes {math.prod(shape) * dtype.itemsize}"
        )
    try:
        return np.frombuffer(data, dtype).reshape(shape)
    except ValueError as error:  # numpy has no room for some sizes, though there is a 0 among them
        raise MalformedTensor(f"shape is {list(shape)}: {error}") from None
