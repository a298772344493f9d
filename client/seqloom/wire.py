"""Encodes protobuf messages that contain tensors, copying the elements once, where protobuf would copy them five times.

Protobuf encodes everything but the tensors. The fields of an encoded message may follow one another in any order, and a
nested message is preceded by its field number and size, so parts that were encoded separately can be joined (Protocol
Buffers, Encoding).
"""

import functools
import struct
from collections.abc import Iterable
from typing import TypeAlias

from seqloom import tensors
from seqloom.tensors import Array
from seqloom.v1 import tensor_pb2

Buffers: TypeAlias = "list[bytes | memoryview]"
"""The parts of an encoded message, in order; they are joined when it is sent."""

_TAGGED_DOUBLE = struct.Struct("<Bd")
_DATA = tensor_pb2.Tensor.DESCRIPTOR.fields_by_name["data"].number


def tensor(field: int, array: Array, before: bytes = b"") -> Buffers:
    """Encodes an array as a tensor in a field; see tensors.encode_into. before: encoded fields that precede it.

    The array must not change until the buffers are joined.
    """
    data = tensors.stored(array)
    head = _tensor_head(field, tensors.data_type_of(array.dtype), array.shape)
    return [before + head, data]


def message(field: int, parts: Buffers) -> Buffers:
    """Encodes a field that is a message of these parts."""
    return [delimiter(field, sum(map(_size, parts))), *parts]


def joined(parts: Iterable["bytes | memoryview"]) -> bytes:
    """Joins the parts of a message: the only copy."""
    return b"".join(parts)


def double(field: int, value: float) -> bytes:
    """Encodes a field of type double. field: its number, up to 15, so that its tag is one byte."""
    return _TAGGED_DOUBLE.pack(field << 3 | 1, value)


@functools.lru_cache(4096)
def delimiter(field: int, size: int) -> bytes:
    """Encodes the number and size that precede a field of messages or bytes. size: in bytes."""
    return _varint(field << 3 | 2) + _varint(size)


@functools.lru_cache(4096)
def _tensor_head(field: int, data_type: tensor_pb2.DataType, shape: tuple[int, ...]) -> bytes:
    """Encodes what precedes a tensor's elements. It is cached, as streams send the same shapes repeatedly."""
    size = tensors.stored_bytes(data_type, shape)
    inner = tensor_pb2.Tensor(data_type=data_type, shape=shape).SerializeToString() + delimiter(_DATA, size)
    return delimiter(field, len(inner) + size) + inner


def _size(part: "bytes | memoryview") -> int:
    return part.nbytes if isinstance(part, memoryview) else len(part)


def _varint(number: int) -> bytes:
    """Encodes an integer, seven bits in each byte, the lowest first; the eighth bit says that more bytes follow."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
