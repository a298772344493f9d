"""Inference of whole sequences: each is a session of the shared call, so many callers share a message."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy.typing as npt

from seqloom._messages import arguments
from seqloom._streaming.shared_call import SharedCall
from seqloom._streaming.throttle import Throttle
from seqloom._streaming.whole_session import WholeSession
from seqloom.errors import Cancelled, DeadlineExceeded, Overloaded, SeqloomError, VersionMismatch
from seqloom.tensors import Array
from seqloom.types import InferenceResult, ModelSpec, Outputs, State, Timing
from seqloom.v1 import inference_service_pb2, tensor_pb2

_ASKED_BYTES = 4 << 10  # more frames are sent to a server that refuses calls only once it has admitted them
_MIXED_VERSIONS = 3  # how often a call is repeated if its sequences ran with different weights


@dataclass(frozen=True, slots=True)
class InferRequest:
    """The checked arguments of `infer`: N sequences [T_i, D], and the initial state [L, 1, H] of each, or None."""

    model: str
    spec: ModelSpec
    outputs: Outputs
    output: tensor_pb2.OutputSpec
    sequences: list[Array]
    states: list[tensor_pb2.State | None]
    weights_version: int

    @classmethod
    def checked(
        cls,
        model: str,
        spec: ModelSpec,
        xs: Iterable[npt.ArrayLike],
        outputs: Outputs,
        initial_state: State | None,
        version: int | None,
    ) -> "InferRequest":
        """Checks the arguments of `infer`. Raises InvalidArgument."""
        sequences = arguments.sequences(xs, spec)
        states = arguments.state(initial_state, spec, len(sequences))
        return cls(model, spec, outputs, arguments.output_spec(outputs), sequences, states, arguments.version(version))


class _Admission:
    """Tells the throttle that a call was accepted, once all its sequences are answered and none was refused.

    That is as soon as it is known, and also if a sequence fails afterwards.
    """

    __slots__ = ("_demand", "_throttle", "_unanswered")

    def __init__(self, throttle: Throttle, demand: tuple[float, int], sequences: int) -> None:
        self._throttle = throttle
        self._demand = demand
        self._unanswered = sequences

    def answered(self, failure: SeqloomError | None) -> None:
        """Handles the first answer to a sequence."""
        if not isinstance(failure, Overloaded):
            self._unanswered -= 1
            if self._unanswered == 0:
                self._throttle.accepted(*self._demand)


async def infer(call: SharedCall, request: InferRequest, deadline: float) -> InferenceResult:
    """Runs all sequences of a request with one version of the weights. Raises the error of the first that fails."""
    throttle = call.throttle(request.model)
    demand = deadline - time.monotonic(), sum(map(len, request.sequences))
    try:
        throttle.check(*demand)
    except Overloaded:
        await asyncio.sleep(0)  # who comes again at once must not keep the event loop from all else
        raise
    ask = throttle.overloaded and sum(frames.nbytes for frames in request.sequences) > _ASKED_BYTES
    admission = _Admission(throttle, demand, len(request.sequences))
    for _ in range(_MIXED_VERSIONS):
        try:
            sessions = await _run_sessions(call, request, deadline, admission, ask=ask)
        except Overloaded as error:
            throttle.refused(error, *demand)
            raise
        except TimeoutError:
            raise DeadlineExceeded("the server did not respond before the timeout", reason="TIMEOUT") from None
        if len({session.weights_version for session in sessions}) == 1:
            return _result(sessions)
    raise VersionMismatch("the model's weights were replaced repeatedly while the call ran", reason="MIXED")


async def _run_sessions(
    call: SharedCall, request: InferRequest, deadline: float, admission: _Admission, *, ask: bool
) -> list[WholeSession]:
    kind = (request.spec, request.outputs)
    sessions: list[WholeSession] = []
    try:
        for i, frames in enumerate(request.sequences):
            session = call.new_whole_session(
                kind, frames, deadline, frames_name=f"xs[{i}]", answered=admission.answered
            )
            sessions.append(session)
            message = inference_service_pb2.OpenSession(
                model=request.model,
                output=request.output,
                initial_state=request.states[i],
                weights_version=request.weights_version,
            )
            session.open(message, ask=ask)
        unsent = [session.send_rest() for session in sessions if not session.ending]
        if len(unsent) == 1:  # the common case, without a task
            await unsent[0]
        elif unsent:
            await asyncio.gather(*unsent)
        for session in sessions:
            await session.finished()
        call.remember_window(kind, sessions[0])
        return sessions
    finally:
        for session in sessions:
            if not session.ended:
                session.cancel(Cancelled("the call has ended", reason="CANCELLED"))


def _result(sessions: list[WholeSession]) -> InferenceResult:
    timings = [session.timing for session in sessions if session.timing is not None]
    states = [session.final_state for session in sessions if session.final_state is not None]
    return InferenceResult(
        outputs=[session.receive().outputs for session in sessions],
        final_state=states[0] if len(states) == 1 else arguments.joined_states(states),
        weights_version=sessions[0].weights_version,
        timing=Timing(
            max(timing.queue_seconds for timing in timings), max(timing.compute_seconds for timing in timings)
        ),
    )
