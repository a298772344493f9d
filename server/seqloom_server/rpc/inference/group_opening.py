"""What the entry that opens a stream group asks for, checked."""

import math
from dataclasses import dataclass

import numpy as np
from seqloom import tensors
from seqloom.v1 import inference_service_pb2

from seqloom_server.config import ServerConfig
from seqloom_server.engine.core.sequence import OutputSpec, StateArrays
from seqloom_server.engine.core.stream_group import Index
from seqloom_server.errors import invalid, over_limit
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc.calls import converters
from seqloom_server.rpc.inference.session_opening import WINDOW_BYTES, checked_resumption

_FRAMES_BYTES = 32 << 20  # of frames of one group that are sent ahead
_MAX_STREAMS = 1 << 16  # so that a message holds a number of 8 bytes for each, beside a block of what was asked for


@dataclass(slots=True)
class GroupOpening:
    """A checked opening.

    count: n, the streams. initial_state: [rows, n, width] per part, None for zeros. timeout: seconds, None for none.
    rate: steps a second of each stream, 0 for a group that takes what is left. resumed: of a group that goes on, the
    steps of a stream that was in every call, None for a new one; stream_steps: those of every stream, or int64 [n].
    step_bytes: charged for the outputs of one step of one stream. window_steps: the window, in steps of a stream.
    most_rows: the steps of a call, those of all its streams together; most_bytes: of its frames and of the states that
    it sets.
    """

    count: int
    output: OutputSpec
    initial_state: StateArrays | None
    timeout: float | None
    rate: float
    resumed: int | None
    stream_steps: int | Index
    snapshot_interval: int
    step_bytes: int
    window_steps: int
    most_rows: int
    most_bytes: int

    @classmethod
    def checked(cls, request: inference_service_pb2.OpenGroup, spec: ModelSpec, config: ServerConfig) -> "GroupOpening":
        """Returns what an entry asks for. Raises ServerError INVALID_FIELD and OVER_LIMIT."""
        count, rate = request.streams, request.steps_per_second
        if spec.bidirectional:
            raise invalid("groups.open.model", "is bidirectional: expected a model that can run streams")
        if not count:
            raise invalid("groups.open.streams", "is 0: expected at least 1")
        most = min(config.max_sessions, _MAX_STREAMS)
        if count > most:
            raise over_limit("groups.open.streams", f"is {count}: expected at most {most}")
        output = converters.output_spec(request.output, spec, "groups.open.output")
        initial = None
        if request.HasField("initial_state"):
            initial = converters.served_state(request.initial_state, spec, count, "groups.open.initial_state")
        timeout = converters.timeout(request.timeout_seconds, "groups.open.timeout_seconds")
        if not (math.isfinite(rate) and rate >= 0):
            raise invalid("groups.open.steps_per_second", f"is {rate}: expected a finite number of at least 0")
        resumed: int | None = None
        stream_steps: int | Index = 0
        if request.HasField("resumed"):
            resumed = checked_resumption(request.resumed, "groups.open.resumed")
            stream_steps = _stream_steps(request.resumed, count)
        step_bytes = converters.output_bytes(output, spec)
        window = min(
            config.window_steps,
            WINDOW_BYTES // (count * step_bytes),
            _FRAMES_BYTES // (count * spec.input_size * np.dtype(spec.dtype).itemsize),
        )
        return cls(
            count,
            output,
            initial,
            timeout,
            rate,
            resumed,
            stream_steps,
            request.snapshot_interval_steps,
            step_bytes,
            window_steps=max(1, window),
            most_rows=config.max_queue_steps,
            most_bytes=config.max_queue_bytes,
        )


def _stream_steps(resumed: inference_service_pb2.Resumption, count: int) -> int | Index:
    """Returns the steps of every stream of a group that goes on, or int64 [n]. Raises ServerError INVALID_FIELD."""
    if not resumed.HasField("stream_steps"):
        return resumed.steps
    field = "groups.open.resumed.stream_steps"
    try:
        steps = tensors.decode(resumed.stream_steps)
    except tensors.MalformedTensor as error:
        raise invalid(field, str(error)) from None
    if steps.dtype != np.int64 or steps.shape != (count,):
        raise invalid(field, f"has shape {list(steps.shape)} of {steps.dtype}: expected int64 [{count}]")
    if steps.min() < 0 or steps.max() > resumed.steps:
        raise invalid(field, f"has {steps.min()} to {steps.max()}: expected 0 to {resumed.steps}, those in every call")
    return steps
