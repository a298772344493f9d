"""A training run: weights and optimizer on the server, which one client or many train."""

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Self, TypeVar

import numpy.typing as npt

from seqloom import _forks
from seqloom._connection.connection import Connection
from seqloom._connection.service_stubs import CallOptions
from seqloom._messages import arguments
from seqloom._training.call_delivery import CallDelivery
from seqloom._training.optimizers import nonnegative_number, optimizer_of
from seqloom._training.results import ForwardBackwardResult, RunInfo, StepResult
from seqloom._training.run_requests import (
    ForwardBackward,
    LoadCheckpoint,
    OptimStep,
    PublishRun,
    RunRequest,
    SaveCheckpoint,
)
from seqloom._training.training_examples import Loss, Reduction, TrainingExamples
from seqloom.errors import Cancelled
from seqloom.types import ModelSpec, State, integer
from seqloom.v1 import training_service_pb2

Result = TypeVar("Result")


class AsyncRun:
    """A training run on the server, returned by `client.create_run` or `client.attach_run`.

    Calls are sent without waiting for replies, and done in order, each exactly once: the client keeps the calls that a
    failure of the server could lose, and sends them again. A call may still be done after its timeout. timeout:
    seconds, by default the client's.

    At the end of its `with` block the run waits for all calls and is saved; `close` does the same.
    """

    def __init__(self, connection: Connection, run: training_service_pb2.Run, replay_bytes: int) -> None:
        self._connection = connection
        self._id = run.id
        self._model = run.model
        self._spec = arguments.spec_of(run.spec)
        config = connection.config
        options: CallOptions = {"metadata": config.metadata()}
        self._delivery = CallDelivery(
            run.id, connection.channel(), options, replay_bytes, config.timeout, connection.retry_budget
        )
        connection.add_listener(self._delivery)

    @property
    def id(self) -> str:
        """The run's id on the server, for `attach_run(id)`."""
        return self._id

    @property
    def model(self) -> str:
        """The name of the model that the run started from."""
        return self._model

    @property
    def spec(self) -> ModelSpec:
        """The model's specification."""
        return self._spec

    def forward_backward(
        self,
        xs: Iterable[npt.ArrayLike],
        targets: Iterable[npt.ArrayLike] | None = None,
        *,
        loss: Loss = "cross_entropy",
        reduction: Reduction = "sum",
        output_gradients: Iterable[npt.ArrayLike] | None = None,
        initial_state: State | None = None,
        final_state_gradient: State | None = None,
        timeout: float | None = None,
    ) -> asyncio.Future[ForwardBackwardResult]:
        """Adds the gradient of N sequences to those that the next step applies. Returns a future at once.

        Arguments as of `gradients`; they are copied. Raises InvalidArgument at once if an argument is wrong. The future
        raises the server's errors; then nothing was added.
        """
        examples = TrainingExamples.checked(
            self._spec,
            xs,
            targets,
            loss=loss,
            reduction=reduction,
            output_gradients=output_gradients,
            initial_state=initial_state,
            final_state_gradient=final_state_gradient,
        )
        return self._submit(ForwardBackward(examples), timeout)

    async def step(
        self, learning_rate: float | None = None, *, expected_step: int | None = None, timeout: float | None = None
    ) -> StepResult:
        """Applies the accumulated gradients with the optimizer, and clears them.

        learning_rate: for this step, at least 0; None for the optimizer's. expected_step: the number that this step
        must have, else it is refused. Raises InvalidArgument if nothing was accumulated, or if a weight or a moment
        would overflow; an overflow changes neither weights nor step number, and drops the accumulated gradients.
        """
        request = OptimStep(
            None if learning_rate is None else nonnegative_number(learning_rate, "learning_rate"),
            0 if expected_step is None else min(integer(expected_step, "expected_step"), 2**63 - 1),
        )
        return await self._submit(request, timeout)

    async def save(self, name: str = "", *, timeout: float | None = None) -> int:
        """Saves a checkpoint and returns the durable step. Without a name it replaces the last unnamed checkpoint."""
        return await self._submit(SaveCheckpoint(arguments.text(name, "name")), timeout)

    async def load(self, name: str, *, timeout: float | None = None) -> int:
        """Restores weights, optimizer, step number and accumulated gradients from a checkpoint. Returns its step.

        Raises NotFound.
        """
        return await self._submit(LoadCheckpoint(arguments.text(name, "name")), timeout)

    async def publish(self, *, timeout: float | None = None) -> int:
        """Serves the run's weights as the model's next version, and returns it. Open streams keep their weights."""
        return await self._submit(PublishRun(), timeout)

    async def info(self, *, timeout: float | None = None) -> RunInfo:
        """Returns the current description of the run. Raises NotFound."""
        request = training_service_pb2.GetRunRequest(run=self._id, client=self._delivery.client)
        return run_info((await self._connection.training(lambda stub: stub.GetRun, request, timeout)).run)

    async def checkpoints(self, *, timeout: float | None = None) -> list[str]:
        """Returns the names of the run's checkpoints."""
        return list((await self.info(timeout=timeout)).checkpoints)

    async def delete(self, *, timeout: float | None = None) -> None:
        """Deletes the run and its checkpoints. Pending calls fail with NotFound or Cancelled."""
        request = training_service_pb2.DeleteRunRequest(run=self._id)
        await self._connection.training(lambda stub: stub.DeleteRun, request, timeout, read_only=False)
        self._abort()

    async def close(self, *, timeout: float | None = None) -> None:
        """Waits for all calls, and makes the server save what it could lose. The run stays on the server.

        Raises the error that prevents this, such as DeadlineExceeded; then calls that were not sent are dropped.
        """
        deadline = self._connection.config.deadline(timeout)  # before anything is dropped: it raises InvalidArgument
        if _forks.is_forked():
            return
        try:
            await self._delivery.drain(deadline)
        finally:
            self._abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
        else:
            self._abort()

    def _abort(self) -> None:
        if _forks.is_forked():
            return
        self._delivery.abort(Cancelled("the run is closed", reason="RUN_CLOSED"))

    def _submit(self, request: RunRequest[Result], timeout: float | None) -> asyncio.Future[Result]:
        _forks.check_not_forked()
        return self._delivery.submit(request, self._connection.config.deadline(timeout))


def run_info(run: training_service_pb2.Run) -> RunInfo:
    """Returns the description of a run in a message."""
    alive = not run.broken
    return RunInfo(
        id=run.id,
        model=run.model,
        _spec=arguments.spec_of(run.spec) if alive else None,
        weights_version=run.weights_version,
        _optimizer=optimizer_of(run.optimizer) if alive else None,
        clip_norm=run.clip_norm or None,
        checkpoint_interval=run.checkpoint_interval,
        step=run.step,
        durable_step=run.durable_step,
        loss=run.loss if run.HasField("loss") else None,
        accumulated_calls=run.accumulated_calls,
        checkpoints=tuple(run.checkpoints),
        waiting_for=run.waiting_for,
        broken=run.broken,
    )
