"""The numbered calls on a training run: the request that each sends and the result that it returns.

Gradients and optimizer steps go by the call that all runs of a client share, but for those that are so large that a
call of their own costs nothing in comparison, and to servers that do not know the shared call.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np

from seqloom import wire
from seqloom._connection.channel import Channel
from seqloom._connection.run_stream import NotServed
from seqloom._connection.service_stubs import CallOptions
from seqloom._training.results import ForwardBackwardResult, StepResult
from seqloom._training.training_examples import TrainingExamples
from seqloom.errors import Internal, checked_reply
from seqloom.types import Timing
from seqloom.v1 import training_service_pb2
from seqloom.v1.training_service_pb2 import CallId, RunCall, RunCallReply

Result = TypeVar("Result", covariant=True)

_NEVER = 2**62  # a step that no run reaches
_EXAMPLES = training_service_pb2.ForwardBackwardRequest.EXAMPLES_FIELD_NUMBER
_FORWARD_BACKWARD = RunCall.FORWARD_BACKWARD_FIELD_NUMBER
_OPTIM_STEP = RunCall.OPTIM_STEP_FIELD_NUMBER
_SHARED_BYTES = 256 << 10  # of an entry of the shared call, at most: a larger one would hold up the others


@dataclass(frozen=True, slots=True)
class RunReply(Generic[Result]):
    """The server's reply to a call.

    result: what the caller gets. calls_durable: how many of the client's calls the server cannot lose any more. step:
    the step that the call belongs to, sent along if the call is sent again; 0 if it is not needed. calls: the calls
    that an optimizer step applied, by client.
    """

    result: Result
    calls_durable: int
    step: int = 0
    calls: Mapping[str, int] = field(default_factory=dict)


class RunRequest(Protocol[Result]):
    """One call on a run. size: how many bytes it takes to keep it."""

    @property
    def size(self) -> int: ...

    async def send(
        self, channel: Channel, call: CallId, calls: Mapping[str, int], options: CallOptions
    ) -> RunReply[Result]:
        """Sends the call. calls: if an optimizer step is sent again, the `calls` of its first reply."""


@dataclass(frozen=True, slots=True)
class ForwardBackward:
    """Adds gradients to those that the next optimizer step applies."""

    examples: TrainingExamples

    @property
    def size(self) -> int:
        return self.examples.nbytes

    async def send(
        self, channel: Channel, call: CallId, calls: Mapping[str, int], options: CallOptions
    ) -> RunReply[ForwardBackwardResult]:
        first = training_service_pb2.ForwardBackwardRequest(call=call, parts=1)
        shared = None
        if self.size <= _SHARED_BYTES:
            request = [first.SerializeToString(), *self.examples.encoded(_EXAMPLES)]
            shared = await _shared(channel, "forward_backward", wire.message(_FORWARD_BACKWARD, request))
        if shared is not None:
            reply = shared.forward_backward
        else:
            first.ClearField("parts")
            reply = checked_reply(await channel.training.ForwardBackward(self.examples.requests(first), **options))
        timing = Timing(reply.timing.queue_seconds, reply.timing.compute_seconds)
        losses = np.array(reply.losses, float)
        result = ForwardBackwardResult(reply.loss, losses, reply.step, reply.progress.durable_step, timing)
        return RunReply(result, reply.progress.calls_durable, reply.step)


@dataclass(frozen=True, slots=True)
class OptimStep:
    """Applies the accumulated gradients. learning_rate: the optimizer's if None. expected_step: 0 for any step."""

    learning_rate: float | None
    expected_step: int
    size: int = 0

    async def send(
        self, channel: Channel, call: CallId, calls: Mapping[str, int], options: CallOptions
    ) -> RunReply[StepResult]:
        request = training_service_pb2.OptimStepRequest(
            call=call, learning_rate=self.learning_rate, expected_step=self.expected_step, calls=calls
        )
        shared = await _shared(channel, "optim_step", wire.message(_OPTIM_STEP, [request.SerializeToString()]))
        reply = (
            checked_reply(await channel.training.OptimStep(request, **options)) if shared is None else shared.optim_step
        )
        result = StepResult(reply.step, reply.gradient_norm, reply.progress.durable_step)
        return RunReply(result, reply.progress.calls_durable, reply.step, dict(reply.calls))


async def _shared(channel: Channel, kind: str, entry: wire.Buffers) -> RunCallReply | None:
    """Sends an entry by the shared call and returns its reply; None if the server has no such call."""
    if not channel.run_stream.served:
        return None
    try:
        reply = await channel.run_stream.send(entry)
    except NotServed:
        return None
    if reply.WhichOneof("reply") != kind:
        raise Internal(f"the server answered {kind} with another reply", reason="MALFORMED_REPLY")
    return reply


# Sent in place of a call that was refused if the server has lost it: it is refused again, which uses up its number.
REFUSED = OptimStep(None, _NEVER)


@dataclass(frozen=True, slots=True)
class SaveCheckpoint:
    """Saves the run. name: "" for the unnamed checkpoint, which each such save replaces."""

    name: str
    size: int = 0

    async def send(
        self, channel: Channel, call: CallId, calls: Mapping[str, int], options: CallOptions
    ) -> RunReply[int]:
        request = training_service_pb2.SaveCheckpointRequest(call=call, name=self.name)
        progress = checked_reply(await channel.training.SaveCheckpoint(request, **options)).progress
        return RunReply(progress.durable_step, progress.calls_durable, progress.step + 1)


@dataclass(frozen=True, slots=True)
class LoadCheckpoint:
    """Restores the run from a checkpoint."""

    name: str
    size: int = 0

    async def send(
        self, channel: Channel, call: CallId, calls: Mapping[str, int], options: CallOptions
    ) -> RunReply[int]:
        request = training_service_pb2.LoadCheckpointRequest(call=call, name=self.name)
        progress = checked_reply(await channel.training.LoadCheckpoint(request, **options)).progress
        return RunReply(progress.step, progress.calls_durable)  # no step: steps count on from the checkpoint's


@dataclass(frozen=True, slots=True)
class PublishRun:
    """Makes the run's weights the served weights of its model."""

    size: int = 0

    async def send(
        self, channel: Channel, call: CallId, calls: Mapping[str, int], options: CallOptions
    ) -> RunReply[int]:
        reply = checked_reply(
            await channel.training.PublishRun(training_service_pb2.PublishRunRequest(call=call), **options)
        )
        return RunReply(reply.weights_version, reply.progress.calls_durable, reply.progress.step + 1)
