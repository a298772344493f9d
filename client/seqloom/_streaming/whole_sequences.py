"""Inference of whole sequences: each is a session of the shared call, so many callers share a message."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import numpy.typing as npt

from seqloom._messages import arguments
from seqloom._streaming.session import Session
from seqloom._streaming.shared_call import SharedCall
from seqloom.errors import Cancelled, DeadlineExceeded, Overloaded, VersionMismatch
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


async def infer(call: SharedCall, request: InferRequest, deadline: float) -> InferenceResult:
    """Runs all sequences of a request with one version of the weights. Raises the error of the first that fails."""
    throttle = call.throttle(request.model)
    try:
        throttle.check()
    except Overloaded:
        await asyncio.sleep(0)  # who comes again at once must not keep the event loop from all else
        raise
    for _ in range(_MIXED_VERSIONS):
        try:
            sessions = await _run_sessions(call, request, deadline)
        except Overloaded as error:
            throttle.refused(error)
            raise
        except TimeoutError:
            raise DeadlineExceeded("the server did not respond before the timeout", reason="TIMEOUT") from None
        if len({session.weights_version for session in sessions}) == 1:
            return _result(sessions)
    raise VersionMismatch("the model's weights were replaced repeatedly while the call ran", reason="MIXED")


async def _run_sessions(call: SharedCall, request: InferRequest, deadline: float) -> list[Session]:
    kind = (request.spec, request.outputs)
    sessions: list[Session] = []
    throttle = call.throttle(request.model)
    ask = throttle.overloaded and sum(frames.nbytes for frames in request.sequences) > _ASKED_BYTES
    try:
        for i, frames in enumerate(request.sequences):
            session = call.new_session(kind, f"xs[{i}]")
            sessions.append(session)
            message = inference_service_pb2.OpenSession(
                model=request.model,
                output=request.output,
                initial_state=request.states[i],
                weights_version=request.weights_version,
            )
            session.open_whole(message, frames, deadline, ask=ask)
        unsent = [
            session.send_rest(frames, deadline)
            for session, frames in zip(sessions, request.sequences, strict=True)
            if not session.ending
        ]
        if len(unsent) == 1:  # the common case, without a task
            await unsent[0]
        elif unsent:
            await asyncio.gather(*unsent)
        if ask:
            throttle.accepted()
        for session in sessions:
            await session.wait(lambda session=session: session.final_state is not None, deadline)  # type: ignore[misc]
        if not ask:
            throttle.accepted()
        call.remember_window(kind, sessions[0])
        return sessions
    finally:
        for session in sessions:
            if not session.ended:
                session.cancel(Cancelled("the call has ended", reason="CANCELLED"))


def _result(sessions: list[Session]) -> InferenceResult:
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
