"""What Hypothesis draws of protobuf messages: whole ones, field by field, and good ones that are changed and broken."""

import struct
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_NUMBERS = (
    0,
    1,
    2,
    3,
    5,
    7,
    64,
    1000,
    4096,
    1 << 20,
    (1 << 31) - 1,
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
)
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 100.0, 1e-308, 1e308, float("inf"), float("-inf"), float("nan"))
_TEXTS = ("", "a" * 64, "a" * 65, "x" * 5000, "..", "../small", "A", "small\0", "schön", "\U0001f600", " ", ".lock")
_DEPTH = 4

# Bytes that stand behind a message: fields that it does not have, groups, lengths and numbers without an end.
UNKNOWN = (
    b"\xf8\xff\xff\xff\x0f\x01",  # a field with the highest number
    b"\xfa\xff\xff\xff\x0f\x03abc",
    b"\x93\x3e\x08\x01\x94\x3e",  # a group
)
BROKEN = (
    b"\x93\x3e",  # a group that does not end
    b"\x0a\xff\xff\xff\xff\x07",  # a length of 2 GiB
    b"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80",  # a number of more than ten bytes
    b"\x00",  # field 0
    b"\x0f",  # an unknown kind of field
    b"\x12\x05ab",  # cut
)


def one_in(draw: Any, n: int) -> bool:
    """True once in n draws, about: Hypothesis prefers the ends of a range, and what it has drawn before."""
    return draw(st.integers(0, (1 << 16) - 1)) % n == n // 2


def _enum_numbers(field: FieldDescriptor) -> st.SearchStrategy[int]:
    known = [value.number for value in field.enum_type.values]
    return st.sampled_from([*known, max(known) + 1, 99, -1, (1 << 31) - 1])


@st.composite
def tensors(draw: Any, cls: type[Message]) -> Message:
    """A Tensor, whose bytes mostly fit its shape."""
    data_type, width = draw(st.sampled_from([(1, 4), (1, 4), (2, 8), (3, 4), (4, 2), (5, 8), (0, 4), (9, 4)]))
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 5, 7, 300]), max_size=4))
    count = 1
    for size in shape:
        count *= size
    fill = draw(st.sampled_from([b"\0" * width, b"\1" * width, b"\xff" * width, struct.pack("<f", 0.25)[-width:] * 2]))
    data = (fill * min(count, 4096))[: width * min(count, 4096)]
    change = draw(st.integers(0, 9))
    if change == 0:
        data = data[:-1]
    elif change == 1:
        shape = [*shape, draw(st.sampled_from([-1, 1 << 31, 1 << 62]))]
    return cls(data_type=data_type, shape=shape, data=data)


@st.composite
def messages(draw: Any, descriptor: Descriptor, names: Sequence[str] = (), depth: int = _DEPTH) -> Message:
    """A message with some of its fields. names: texts that mean something, as those of models and runs."""
    cls = GetMessageClass(descriptor)
    if descriptor.name == "Tensor":
        return draw(tensors(cls))
    message = cls()
    for field in descriptor.fields:
        if not one_in(draw, 3):
            put(draw, message, field, names, depth)
    return message


def put(draw: Any, message: Message, field: FieldDescriptor, names: Sequence[str], depth: int = _DEPTH) -> None:
    """Gives a field a drawn value, in place of the one it has."""
    message.ClearField(field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        kept = getattr(message, field.name)
        for key in draw(st.lists(_texts(names), max_size=3)):
            kept[key] = draw(st.sampled_from(_NUMBERS))
    elif field.message_type is not None:
        if not depth:
            return
        drawn = messages(field.message_type, names, depth - 1)
        if field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(drawn, max_size=3)))
        else:
            getattr(message, field.name).CopyFrom(draw(drawn))
    elif field.is_repeated:
        values = draw(st.lists(_values(field, names), max_size=4)) * draw(st.sampled_from([1, 1, 1, 500]))
        getattr(message, field.name).extend(values)
    else:
        setattr(message, field.name, draw(_values(field, names)))


def _texts(names: Sequence[str]) -> st.SearchStrategy[str]:
    return st.sampled_from([*names, *names, *_TEXTS])


def _values(field: FieldDescriptor, names: Sequence[str]) -> st.SearchStrategy[Any]:
    kind = field.cpp_type
    if kind in _RANGES:
        least, most = _RANGES[kind]
        fitting = [n for n in (*_NUMBERS, -1, least) if least <= n <= most]
        return st.sampled_from(fitting)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return _enum_numbers(field)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return st.sampled_from(_FLOATS)
    if field.type == FieldDescriptor.TYPE_STRING:
        return _texts(names)
    return st.binary(max_size=40)


def parts_of(message: Message) -> Iterator[Message]:
    """The message and all messages in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for part in value if field.is_repeated else [value]:
            yield from parts_of(part)


@st.composite
def changed(draw: Any, good: Sequence[Message], names: Sequence[str]) -> list[Message]:
    """The messages of a call, of which some fields, or their number and order, are changed."""
    result = [type(message).FromString(message.SerializeToString()) for message in good]
    for _ in range(draw(st.integers(0, 3))):
        if len(result) > 1 and one_in(draw, 4):
            _reorder(draw, result)
        elif result:
            part = draw(st.sampled_from(list(parts_of(draw(st.sampled_from(result))))))
            if part.DESCRIPTOR.fields:
                _change(draw, part, draw(st.sampled_from(list(part.DESCRIPTOR.fields))), names)
    return result


def _change(draw: Any, part: Message, field: FieldDescriptor, names: Sequence[str]) -> None:
    change = draw(st.integers(0, 3))
    if change == 0:
        part.ClearField(field.name)
    elif change == 1 and field.is_repeated and not _is_map(field):
        values = list(getattr(part, field.name))
        if values:
            values.insert(draw(st.integers(0, len(values))), draw(st.sampled_from(values)))
            if draw(st.booleans()):
                values.reverse()
            copies = [type(v).FromString(v.SerializeToString()) if isinstance(v, Message) else v for v in values]
            part.ClearField(field.name)
            getattr(part, field.name).extend(copies)
    else:
        put(draw, part, field, names, depth=2)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _reorder(draw: Any, result: list[Message]) -> None:
    place, other = draw(st.integers(0, len(result) - 1)), draw(st.integers(0, len(result) - 1))
    change = draw(st.integers(0, 2))
    if change == 0:
        result[place], result[other] = result[other], result[place]
    elif change == 1:
        del result[place]
    else:
        result.insert(other, result[place])


@st.composite
def serialized(draw: Any, message: Message) -> bytes:
    """The bytes of a message, one in five of which has more of them, fewer or others."""
    raw = message.SerializeToString()
    if not one_in(draw, 5):
        return raw
    change = draw(st.integers(0, 4))
    if change == 0:
        return raw[: draw(st.integers(0, len(raw)))]
    if change == 1:
        return raw + draw(st.sampled_from(UNKNOWN))
    if change == 2:
        return raw + draw(st.sampled_from(BROKEN))
    if change == 3 and raw:
        place = draw(st.integers(0, len(raw) - 1))
        return raw[:place] + bytes([raw[place] ^ 1 << draw(st.integers(0, 7))]) + raw[place + 1 :]
    return draw(st.binary(max_size=60))
