"""One call of a stream group, checked: what its entries ask for, put together where it came in several of them."""

import functools
from dataclasses import dataclass

import numpy as np
from seqloom import tensors
from seqloom.v1 import inference_service_pb2, tensor_pb2

from seqloom_server.engine.core.sequence import Array, StateArrays
from seqloom_server.engine.core.stream_group import GroupWork, Index
from seqloom_server.errors import invalid, over_limit
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc.calls import converters

MAX_CALL_BYTES = 64 << 20  # of the frames of one call, and of its outputs

_OF_THE_FIRST = ("streams", "set", "reset", "get")  # of the parts of a call


@dataclass(slots=True)
class GroupCall:
    """What a call does, in this order: set, reset, run its frames, get, end.

    streams: int64 [w], those of the frames, None for all. frames: [w, k, D], None for none. set: streams, None for all,
    and their states, [rows, w, width] per part. reset: int64, the streams to reset, None for none. gets: whether states
    are asked for, of the streams `get`, None for all.
    """

    streams: Index | None = None
    frames: Array | None = None
    set: tuple[Index | None, StateArrays] | None = None
    reset: Index | None = None
    gets: bool = False
    get: Index | None = None
    end: bool = False

    @property
    def steps(self) -> int:
        """k, of each stream that it runs; 0 without frames."""
        return 0 if self.frames is None else self.frames.shape[1]

    def check_fits(self, most_bytes: int) -> None:
        """Raises ServerError OVER_LIMIT for a call of more than `most_bytes`, all that the queue accepts."""
        size = GroupWork(set=self.set, reset=self.reset).change_bytes
        if self.frames is not None:
            size += self.frames.nbytes
        if size > most_bytes:
            field = "frames" if self.frames is not None else "set" if self.set is not None else "reset"
            raise over_limit(
                f"groups.{field}", f"make {size} bytes: expected at most {most_bytes}, all that the queue accepts"
            )

    @classmethod
    def checked(cls, entry: inference_service_pb2.GroupRequest, spec: ModelSpec, count: int) -> "GroupCall":
        """Returns the call of an entry, the first of its parts, of a group of `count` streams. Raises ServerError."""
        call = cls(end=entry.end)
        if entry.HasField("streams"):
            if not entry.HasField("frames"):
                raise invalid("groups.streams", "is set without frames: expected those whose frames are sent")
            call.streams = _numbers(entry.streams, count, "groups.streams")
        if entry.HasField("set"):
            where = _set_of(entry.set.streams, count, "groups.set.streams")
            width = count if where is None else len(where)
            call.set = where, converters.served_state(entry.set.state, spec, width, "groups.set.state")
        if entry.HasField("reset"):
            reset = _set_of(entry.reset, count, "groups.reset")
            call.reset = _all(count) if reset is None else reset
        if entry.HasField("get"):
            call.gets, call.get = True, _set_of(entry.get, count, "groups.get")
        if entry.HasField("frames"):
            width = count if call.streams is None else len(call.streams)
            if entry.more or entry.HasField("place"):
                call.frames = _whole(entry.place, width, spec)
            else:
                call.frames = _frames(entry.frames, spec, call.streams, 0, 0)
                if len(call.frames) != width:
                    raise invalid(
                        "groups.frames",
                        f"has shape {list(call.frames.shape)}: expected [{width}, steps, {spec.input_size}], frames of "
                        f"{width} streams",
                    )
        elif entry.more:
            raise invalid("groups.more", "is set without frames: expected parts for frames alone")
        elif entry.HasField("place"):
            raise invalid("groups.place", "is set without frames: expected parts for frames alone")
        return call


class Parts:
    """The blocks of a call's frames, as they come. call: the call, whose frames they fill."""

    def __init__(self, call: GroupCall, spec: ModelSpec) -> None:
        self.call = call
        self._spec = spec
        self._stream = self._step = 0  # where the next block begins
        self._steps = 0  # of the blocks beside each other

    def add(self, entry: inference_service_pb2.GroupRequest) -> None:
        """Adds the block of an entry. Raises ServerError."""
        if self._stream or self._step:
            for field in _OF_THE_FIRST:
                if entry.HasField(field):
                    raise invalid(f"groups.{field}", "is set in a later part of a call: expected in the first")
            if entry.end:
                raise invalid("groups.end", "is set in a later part of a call: expected in the first")
        whole, place = self.call.frames, entry.place
        assert whole is not None
        width, steps = whole.shape[:2]
        if (place.streams, place.steps) != (width, steps):
            raise invalid("groups.place", f"has sizes {[place.streams, place.steps]}: expected {[width, steps]}")
        if (place.stream, place.step) != (self._stream, self._step):
            raise invalid(
                "groups.place", f"begins at {[place.stream, place.step]}: expected {[self._stream, self._step]}"
            )
        block = _frames(entry.frames, self._spec, self.call.streams, self._stream, self._step)
        if not block.size or (self._stream and block.shape[1] != self._steps):
            expected = self._steps if self._stream else "at least 1"
            raise invalid("groups.frames", f"is a block of shape {list(block.shape)}: expected {expected} steps")
        end, last = self._stream + len(block), self._step + block.shape[1]
        if end > width or last > steps:
            raise invalid("groups.frames", f"reach to {[end, last]}: expected at most {[width, steps]}")
        whole[self._stream : end, self._step : last] = block
        self._stream, self._steps = end, block.shape[1]
        if end == width:
            self._stream, self._step = 0, last

    def check_complete(self) -> None:
        """Raises ServerError if blocks are missing."""
        assert self.call.frames is not None
        if self._step != self.call.frames.shape[1]:
            raise invalid("groups.more", f"is not set, but the next block would begin at {[self._stream, self._step]}")


def _whole(place: inference_service_pb2.GroupBlock, width: int, spec: ModelSpec) -> Array:
    """Returns an array for all frames of a call in parts."""
    if place.streams != width or not place.steps:
        raise invalid("groups.place", f"has sizes {[place.streams, place.steps]}: expected {width} streams, and steps")
    dtype = np.dtype(spec.dtype)
    size = width * place.steps * spec.input_size * dtype.itemsize
    if size > MAX_CALL_BYTES:
        raise over_limit("groups.frames", f"will have {size} bytes: expected at most {MAX_CALL_BYTES} in a call")
    return np.zeros((width, place.steps, spec.input_size), dtype)


def _frames(message: tensor_pb2.Tensor, spec: ModelSpec, streams: Index | None, stream: int, step: int) -> Array:
    """Returns frames [w, k, D], the block of a call's frames that begins at a stream and a step."""

    def place(index: list[int]) -> str:
        row = stream + index[0]
        if streams is not None and row < len(streams):  # there may be more rows than streams
            row = int(streams[row])
        return f"step {step + index[1]} of stream {row}, number {index[2]}"

    if len(message.shape) != 3 or message.shape[2] != spec.input_size:
        shape = list(message.shape)[:8]
        raise invalid("groups.frames", f"has shape {shape}: expected [streams, steps, {spec.input_size}]")
    return converters.array(message, spec.dtype, "groups.frames", place)


@functools.lru_cache(maxsize=32)
def _all(count: int) -> Index:
    """Returns the numbers of all streams: one array for all calls, which are far smaller."""
    numbers = np.arange(count)
    numbers.flags.writeable = False
    return numbers


def _set_of(message: inference_service_pb2.StreamSet, count: int, field: str) -> Index | None:
    """Returns the streams of a set, None for all."""
    if message.all:
        if message.HasField("streams"):
            raise invalid(field, "has `all` and streams: expected one of them")
        return None
    return _numbers(message.streams, count, f"{field}.streams")


def _numbers(message: tensor_pb2.Tensor, count: int, field: str) -> Index:
    """Returns numbers of streams, int64 [w], at least one, each once and below `count`."""
    try:
        numbers = tensors.decode(message)
    except tensors.MalformedTensor as error:
        raise invalid(field, str(error)) from None
    if numbers.dtype != np.int32 or numbers.ndim != 1 or not len(numbers):
        raise invalid(field, f"is {numbers.dtype.name} {list(numbers.shape)}: expected int32 [w], one stream at least")
    wrong = numbers[(numbers < 0) | (numbers >= count)]
    if len(wrong):
        raise invalid(field, f"has {wrong[0]}: expected 0 to {count - 1}, as the group has {count} streams")
    times = np.bincount(numbers, minlength=count)
    if times.max() > 1:
        raise invalid(field, f"has stream {times.argmax()} twice: expected each once")
    return numbers.astype(np.int64)
