"""What the entry that opens a session asks for, checked: a live session or a whole sequence, state and limits."""

import math
from dataclasses import dataclass

from seqloom.v1 import inference_service_pb2

from seqloom_server.config import ServerConfig
from seqloom_server.engine.core.sequence import OutputSpec, StateArrays
from seqloom_server.errors import invalid, over_limit
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc.calls import converters

_MIN_WINDOW_STEPS = 64  # that a caller may send before it receives its window
WINDOW_BYTES = 8 << 20  # of unread outputs of one session
_MOST_RESUMED = 2**62  # steps, so that what is counted on from there fits 64 bits


@dataclass(slots=True)
class SessionOpening:
    """A checked opening.

    timeout: seconds, None for none. rate: steps a second of a live session, 0 for one that takes what is left. resumed:
    the steps of a live session that goes on, None for a new one.
    total_steps: of a whole sequence, as its caller says, or 0. most_steps: of a whole sequence. step_bytes: charged for
    the outputs of one step. window_steps: the session's window.
    """

    output: OutputSpec
    initial_state: StateArrays | None
    timeout: float | None
    whole: bool
    resumed: int | None
    rate: float
    total_steps: int
    most_steps: int
    snapshot_interval: int
    step_bytes: int
    window_steps: int

    @classmethod
    def checked(
        cls, entry: inference_service_pb2.SessionRequest, spec: ModelSpec, config: ServerConfig
    ) -> "SessionOpening":
        """Returns what an entry asks for. Raises ServerError INVALID_FIELD and OVER_LIMIT."""
        request = entry.open
        output = converters.output_spec(request.output, spec, "entries.open.output")
        initial = None
        if request.HasField("initial_state"):
            initial = converters.served_state(request.initial_state, spec, 1, "entries.open.initial_state")
        timeout = converters.timeout(request.timeout_seconds, "entries.open.timeout_seconds")
        whole = request.whole_sequence or (entry.HasField("frames") and entry.end)
        interval, total, rate = request.snapshot_interval_steps, request.total_steps, request.steps_per_second
        most, step_bytes = converters.max_steps(spec, config), converters.output_bytes(output, spec)
        if total and not whole:
            raise invalid("entries.open.total_steps", f"is {total}: expected 0 for a live session")
        if total > most:
            raise over_limit("entries.frames", f"will make {total} steps: expected at most {most} in a sequence")
        if rate:
            _check_rate(rate, whole)
        resumed = checked_resumption(request.resumed, "entries.open.resumed") if request.HasField("resumed") else None
        if whole and resumed is not None:
            raise invalid("entries.open.resumed", "is set: expected none for a whole sequence")
        if interval:
            step_bytes += converters.state_bytes(spec) // interval
        window_steps = max(min(config.window_steps, WINDOW_BYTES // step_bytes), _MIN_WINDOW_STEPS)
        if spec.bidirectional:
            _check_whole(request, whole)
            window_steps = most + 1  # no output before the last frame; one more, so that OVER_LIMIT is raised instead
        return cls(output, initial, timeout, whole, resumed, rate, total, most, interval, step_bytes, window_steps)


def checked_resumption(resumed: inference_service_pb2.Resumption, field: str) -> int:
    """Returns the steps of what goes on. Raises ServerError INVALID_FIELD."""
    if resumed.steps > _MOST_RESUMED:
        raise invalid(f"{field}.steps", f"is {resumed.steps}: expected at most {_MOST_RESUMED}")
    return resumed.steps


def shown_steps(entry: inference_service_pb2.SessionRequest, opening: SessionOpening) -> int:
    """Returns the steps of a whole sequence in one entry, as its tensor says, before that is read; 0 if unknown."""
    shape = list(entry.frames.shape) if opening.whole and entry.end else []
    return shape[0] if len(shape) == 2 and 0 < shape[0] <= opening.most_steps else 0


def _check_rate(rate: float, whole: bool) -> None:
    if not (math.isfinite(rate) and rate >= 0):
        raise invalid("entries.open.steps_per_second", f"is {rate}: expected a finite number of at least 0")
    if whole:
        raise invalid("entries.open.steps_per_second", f"is {rate}: expected 0 for a whole sequence")


def _check_whole(request: inference_service_pb2.OpenSession, whole: bool) -> None:
    """Raises for what a bidirectional model, whose layers also run from the last step to the first, cannot do."""
    if not whole:
        raise invalid(
            "entries.open.whole_sequence",
            "is not set: expected true, as the model is bidirectional and runs only whole sequences",
        )
    if request.snapshot_interval_steps:
        raise invalid(
            "entries.open.snapshot_interval_steps",
            f"is {request.snapshot_interval_steps}: expected 0, as the model is bidirectional and has no snapshots",
        )
