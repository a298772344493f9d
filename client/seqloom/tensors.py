"""Converts numpy arrays to protobuf tensors and back, for the SDK and the server.

A tensor has a data type, a shape, and elements in C order, little-endian. Decoding returns a read-only view of the
message's bytes, never a copy; except for bfloat16, which numpy lacks: it becomes a float32 array.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from seqloom.v1 import tensor_pb2

Array: TypeAlias = npt.NDArray[Any]  # of any dtype: numpy does not type arithmetic with np.generic

__all__ = [
    "MAX_RANK",
    "Array",
    "MalformedTensor",
    "data_type_of",
    "decode",
    "encode",
    "encode_into",
    "from_bfloat16",
    "from_bytes",
    "stored",
    "stored_bytes",
    "to_bfloat16",
]

MAX_RANK = 8

_TYPES: dict[np.dtype[np.generic], tensor_pb2.DataType] = {
    np.dtype("<f4"): tensor_pb2.DATA_TYPE_FLOAT32,
    np.dtype("<f8"): tensor_pb2.DATA_TYPE_FLOAT64,
    np.dtype("<i4"): tensor_pb2.DATA_TYPE_INT32,
    np.dtype("<i8"): tensor_pb2.DATA_TYPE_INT64,
}
_DTYPES: dict[int, np.dtype[np.generic]] = {data_type: dtype for dtype, data_type in _TYPES.items()}
_STORED = _DTYPES | {tensor_pb2.DATA_TYPE_BFLOAT16: np.dtype("<u2")}


class MalformedTensor(ValueError):
    """The data type, shape and bytes of a tensor message do not fit together; the message says which."""


def data_type_of(dtype: npt.DTypeLike) -> tensor_pb2.DataType:
    """Returns the DataType of float32, float64, int32 or int64, in any byte order. Raises TypeError for another."""
    data_type = _TYPES.get(dtype) if isinstance(dtype, np.dtype) else None  # the usual case
    if data_type is None:
        data_type = _TYPES.get(np.dtype(dtype).newbyteorder("<"))
    if data_type is None:
        raise TypeError(f"dtype {np.dtype(dtype)} cannot be encoded: expected float32, float64, int32 or int64")
    return data_type


def encode_into(array: Array, tensor: tensor_pb2.Tensor) -> None:
    """Fills an empty tensor message with an array of float32, float64, int32 or int64, of any shape and layout.

    The message may be a field of another message: protobuf would copy a message that is assigned to it later.
    Raises TypeError for another dtype.
    """
    data_type = data_type_of(array.dtype)
    tensor.data_type = data_type
    tensor.shape.extend(array.shape)
    tensor.data = array.astype(_DTYPES[data_type], copy=False).tobytes()


def stored(array: Array) -> memoryview:
    """Returns the elements of an array of float32, float64, int32 or int64 as they are sent; a view if possible.

    Raises TypeError for another dtype.
    """
    return np.ascontiguousarray(array, _DTYPES[data_type_of(array.dtype)]).data


def encode(array: Array) -> tensor_pb2.Tensor:
    """Returns a tensor message of an array of float32, float64, int32 or int64. Raises TypeError for another dtype."""
    tensor = tensor_pb2.Tensor()
    encode_into(array, tensor)
    return tensor


def to_bfloat16(array: Array) -> npt.NDArray[np.uint16]:
    """Converts an array of floats to the bits of bfloat16, rounded to nearest, ties to even; NaN stays NaN."""
    with np.errstate(over="ignore"):  # above float32's range it becomes an infinity in bfloat16, too
        bits = np.ascontiguousarray(array, "<f4").view("<u4").reshape(-1)
    rounded = (bits >> np.uint32(16)) & np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    # the bits that make a number NaN may all be in the lower half
    rounded[nan] = (bits[nan] >> np.uint32(16)) | np.uint32(0x40)
    return rounded.astype("<u2").reshape(np.shape(array))


def from_bfloat16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Converts bits of bfloat16 to float32, exactly."""
    return (bits.reshape(-1).astype("<u4") << np.uint32(16)).view("<f4").reshape(bits.shape)


def stored_bytes(data_type: int, shape: Sequence[int]) -> int:
    """Returns the size of a tensor's elements on the wire, in bytes. Raises MalformedTensor."""
    return _stored_bytes(data_type, tuple(shape))


@functools.lru_cache(4096)  # the same few shapes are sent repeatedly
def _stored_bytes(data_type: int, shape: tuple[int, ...]) -> int:
    dtype = _STORED.get(data_type)
    if dtype is None:
        raise MalformedTensor(f"data_type is {data_type}: expected FLOAT32, FLOAT64, INT32, INT64 or BFLOAT16")
    if len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise MalformedTensor(f"shape is {list(shape)[:MAX_RANK]}: expected at most {MAX_RANK} sizes, none negative")
    return math.prod(shape) * dtype.itemsize


def from_bytes(data_type: int, shape: Sequence[int], data: bytes | npt.NDArray[np.uint8]) -> Array:
    """Returns an array that is a view of a tensor's bytes; for BFLOAT16, a float32 copy. Raises MalformedTensor."""
    expected = stored_bytes(data_type, shape)
    if len(data) != expected:
        raise MalformedTensor(f"data has {len(data)} bytes: shape {list(shape)} of {_name(data_type)} takes {expected}")
    try:
        stored = np.frombuffer(data, _STORED[data_type]).reshape(tuple(shape))
    except ValueError as error:  # numpy refuses some sizes even if another size is 0
        raise MalformedTensor(f"shape is {list(shape)}: {error}") from None
    return from_bfloat16(stored) if data_type == tensor_pb2.DATA_TYPE_BFLOAT16 else stored


def decode(tensor: tensor_pb2.Tensor) -> Array:
    """Returns the array of a tensor message, as from_bytes. Raises MalformedTensor."""
    return from_bytes(tensor.data_type, tuple(tensor.shape), tensor.data)


def _name(data_type: int) -> str:
    return _DTYPES[data_type].name if data_type in _DTYPES else "bfloat16"
