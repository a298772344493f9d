"""The calls on a run as they are sent, under a number, and what their replies mean."""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from seqloom._training.examples import Examples
from seqloom._training.results import ForwardBackwardResult, StepResult
from seqloom.types import Timing
from seqloom.v1 import training_service_pb2
from seqloom.v1.training_service_pb2 import CallId

_NEVER = 2**62  # a step that no run reaches


class RunRequest(Protocol):
    """One call. size: bytes that keeping it takes."""

    @property
    def size(self) -> int: ...

    def send(self, stub: Any, call: CallId, calls: Mapping[str, int], options: dict[str, Any]) -> Awaitable[Any]:
        """Sends it; `calls` is what a step's reply told, where it is sent again."""

    def step(self, reply: Any) -> int:
        """The step before or in which the call belongs, to say so where it is sent again; 0 where that is no use."""

    def result(self, reply: Any) -> Any:
        """What the caller gets."""


@dataclass(frozen=True, slots=True)
class ForwardBackward:
    """Adds gradients to what the next step applies."""

    examples: Examples

    @property
    def size(self) -> int:
        return self.examples.nbytes

    def send(self, stub: Any, call: CallId, calls: Mapping[str, int], options: dict[str, Any]) -> Awaitable[Any]:
        first = training_service_pb2.ForwardBackwardRequest(call=call)
        return stub.ForwardBackward(self.examples.requests(first), **options)  # type: ignore[no-any-return]

    def step(self, reply: training_service_pb2.ForwardBackwardResponse) -> int:
        return reply.step

    def result(self, reply: training_service_pb2.ForwardBackwardResponse) -> ForwardBackwardResult:
        timing = Timing(reply.timing.queue_seconds, reply.timing.compute_seconds)
        losses = np.array(reply.losses, float)
        return ForwardBackwardResult(reply.loss, losses, reply.step, reply.progress.durable_step, timing)


@dataclass(frozen=True, slots=True)
class OptimStep:
    """Applies what was accumulated; None for the optimizer's learning rate, 0 for any step."""

    learning_rate: float | None
    expected_step: int
    size: int = 0

    def send(self, stub: Any, call: CallId, calls: Mapping[str, int], options: dict[str, Any]) -> Awaitable[Any]:
        request = training_service_pb2.OptimStepRequest(
            call=call, learning_rate=self.learning_rate, expected_step=self.expected_step, calls=calls
        )
        return stub.OptimStep(request, **options)  # type: ignore[no-any-return]

    def step(self, reply: training_service_pb2.OptimStepResponse) -> int:
        return reply.step

    def result(self, reply: training_service_pb2.OptimStepResponse) -> StepResult:
        return StepResult(reply.step, reply.gradient_norm, reply.progress.durable_step)


# What is sent for a call that was refused, should the server lose that: it is refused again, and its number used up.
REFUSED = OptimStep(None, _NEVER)


@dataclass(frozen=True, slots=True)
class SaveCheckpoint:
    """Saves under a name, or under none."""

    name: str
    size: int = 0

    def send(self, stub: Any, call: CallId, calls: Mapping[str, int], options: dict[str, Any]) -> Awaitable[Any]:
        request = training_service_pb2.SaveCheckpointRequest(call=call, name=self.name)
        return stub.SaveCheckpoint(request, **options)  # type: ignore[no-any-return]

    def step(self, reply: training_service_pb2.SaveCheckpointResponse) -> int:
        return reply.progress.step + 1

    def result(self, reply: training_service_pb2.SaveCheckpointResponse) -> int:
        return reply.progress.durable_step


@dataclass(frozen=True, slots=True)
class LoadCheckpoint:
    """Goes back, or on, to a checkpoint."""

    name: str
    size: int = 0

    def send(self, stub: Any, call: CallId, calls: Mapping[str, int], options: dict[str, Any]) -> Awaitable[Any]:
        request = training_service_pb2.LoadCheckpointRequest(call=call, name=self.name)
        return stub.LoadCheckpoint(request, **options)  # type: ignore[no-any-return]

    def step(self, reply: training_service_pb2.LoadCheckpointResponse) -> int:
        return 0  # steps count on from the checkpoint's

    def result(self, reply: training_service_pb2.LoadCheckpointResponse) -> int:
        return reply.progress.step


@dataclass(frozen=True, slots=True)
class PublishRun:
    """Makes the run's weights the model's."""

    size: int = 0

    def send(self, stub: Any, call: CallId, calls: Mapping[str, int], options: dict[str, Any]) -> Awaitable[Any]:
        return stub.PublishRun(training_service_pb2.PublishRunRequest(call=call), **options)  # type: ignore[no-any-return]

    def step(self, reply: training_service_pb2.PublishRunResponse) -> int:
        return reply.progress.step + 1

    def result(self, reply: training_service_pb2.PublishRunResponse) -> int:
        return reply.weights_version
