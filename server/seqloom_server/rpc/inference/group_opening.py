"""What the entry that opens a stream group asks for, checked."""

import math
from dataclasses import dataclass

import numpy as np
from seqloom.v1 import inference_service_pb2

from seqloom_server.config import ServerConfig
from seqloom_server.engine.core.sequence import OutputSpec, StateArrays
from seqloom_server.errors import invalid, over_limit
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc.calls import converters
from seqloom_server.rpc.inference.session_opening import WINDOW_BYTES

_FRAMES_BYTES = 32 << 20  # of frames of one group that are sent ahead


@dataclass(slots=True)
class GroupOpening:
    """A checked opening.

    count: n, the streams. initial_state: [rows, n, width] per part, None for zeros. timeout: seconds, None for none.
    rate: steps a second of each stream, 0 for a group that takes what is left. step_bytes: charged for the outputs of
    one step of one stream. window_steps: the window, in steps of a stream. most_rows: the steps of a call, those of all
    its streams together.
    """

    count: int
    output: OutputSpec
    initial_state: StateArrays | None
    timeout: float | None
    rate: float
    snapshot_interval: int
    step_bytes: int
    window_steps: int
    most_rows: int

    @classmethod
    def checked(cls, request: inference_service_pb2.OpenGroup, spec: ModelSpec, config: ServerConfig) -> "GroupOpening":
        """Returns what an entry asks for. Raises ServerError INVALID_FIELD and OVER_LIMIT."""
        count, rate = request.streams, request.steps_per_second
        if spec.bidirectional:
            raise invalid("groups.open.model", "is bidirectional: expected a model that can run streams")
        if not count:
            raise invalid("groups.open.streams", "is 0: expected at least 1")
        if count > config.max_sessions:
            raise over_limit("groups.open.streams", f"is {count}: expected at most {config.max_sessions}")
        output = converters.output_spec(request.output, spec, "groups.open.output")
        initial = None
        if request.HasField("initial_state"):
            initial = converters.served_state(request.initial_state, spec, count, "groups.open.initial_state")
        timeout = converters.timeout(request.timeout_seconds, "groups.open.timeout_seconds")
        if not (math.isfinite(rate) and rate >= 0):
            raise invalid("groups.open.steps_per_second", f"is {rate}: expected a finite number of at least 0")
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
            request.snapshot_interval_steps,
            step_bytes,
            window_steps=max(1, window),
            most_rows=config.max_queue_steps,
        )
