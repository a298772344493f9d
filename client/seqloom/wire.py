"""Messages with tensors, written straight as bytes: elements are copied once, where protobuf would five times.

All but tensors is written by protobuf itself. In its encoding the fields of a message follow one another in any order,
and a message within a message has its number and its size before it, so what was written apart is put together by
joining bytes (Protocol Buffers, Encoding).
"""

import functools
from collections.abc import Iterable
from typing import TypeAlias

from seqloom import tensors
from seqloom.tensors import Array
from seqloom.v1 import tensor_pb2

Buffers: TypeAlias = "list[bytes | memoryview]"
"""What a message consists of, in order; joined when it is sent."""

_DATA = tensor_pb2.Tensor.DESCRIPTOR.fields_by_name["data"].number


def tensor(field: int, array: Array, before: bytes = b"") -> Buffers:
    """Returns a field that holds a tensor message; see tensors.encode_into. before: other fields, put ahead of it.

    The array must not change until the buffers are joined.
    """
    data = tensors.stored(array)
    head = _tensor_head(field, tensors.data_type_of(array.dtype), array.shape)
    return [before + head, data]


def message(field: int, parts: Buffers) -> Buffers:
    """Returns a field that holds a message of these parts."""
    return [delimiter(field, sum(map(_size, parts))), *parts]


def joined(parts: Iterable["bytes | memoryview"]) -> bytes:
    """Returns the bytes of a whole message: the one copy."""
    return b"".join(parts)


@functools.lru_cache(4096)
def delimiter(field: int, size: int) -> bytes:
    """Returns what stands before a message, or bytes, of so many bytes in a field of this number."""
    return _varint(field << 3 | 2) + _varint(size)


@functools.lru_cache(4096)
def _tensor_head(field: int, data_type: tensor_pb2.DataType, shape: tuple[int, ...]) -> bytes:
    """What stands before a tensor's elements: streams send the same shapes again and again."""
    size = tensors.stored_bytes(data_type, shape)
    inner = tensor_pb2.Tensor(data_type=data_type, shape=shape).SerializeToString() + delimiter(_DATA, size)
    return delimiter(field, len(inner) + size) + inner


def _size(part: "bytes | memoryview") -> int:
    return part.nbytes if isinstance(part, memoryview) else len(part)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
