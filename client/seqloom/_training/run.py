"""A run: a model's weights that are trained on the server, by one client or by many."""

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
from seqloom._training.examples import Examples, Loss, Reduction
from seqloom._training.optimizers import at_least_0, optimizer_of
from seqloom._training.results import ForwardBackwardResult, RunInfo, StepResult
from seqloom._training.run_requests import (
    ForwardBackward,
    LoadCheckpoint,
    OptimStep,
    PublishRun,
    RunRequest,
    SaveCheckpoint,
)
from seqloom.errors import Cancelled
from seqloom.types import ModelSpec, State, integer
from seqloom.v1 import training_service_pb2

Result = TypeVar("Result")


class AsyncRun:
    """One training run, made by `client.create_run` or `client.attach_run`.

    Calls are sent without waiting for each other, and done in the order in which they were made, each exactly once,
    whatever breaks on the way: what the server could lose is kept here, and sent again. A call whose timeout passes
    may still be done. Where a timeout is not named, the client's is taken, in seconds.

    As a context manager it waits in the end for what was called, and has it saved; `close` does the same.
    """

    def __init__(self, connection: Connection, run: training_service_pb2.Run, replay_bytes: int) -> None:
        self._connection = connection
        self._id = run.id
        self._model = run.model
        self._spec = arguments.spec_of(run.spec)
        config = connection.config
        options: CallOptions = {"metadata": config.metadata()}
        self._delivery = CallDelivery(run.id, connection.channel(), options, replay_bytes, config.timeout)
        connection.followed_by(self._delivery)

    @property
    def id(self) -> str:
        """Its name on the server: `attach_run(id)` finds it again."""
        return self._id

    @property
    def model(self) -> str:
        """The model that it was forked from."""
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
        """Adds the gradient of N sequences to what the next step applies. Returns at once, with a future.

        Arguments as in `gradients`; they are copied. Raises InvalidArgument at once for what is wrong in them; the
        future raises what the server refuses, in which case nothing was added.
        """
        examples = Examples.checked(
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
        """Applies what was accumulated, and clears it.

        learning_rate: for this step, at least 0; the optimizer's where None. expected_step: the step is refused unless
        it becomes this one. Raises InvalidArgument where nothing was accumulated; and where a weight or a moment would
        overflow: then weights and step number are as before, and what was accumulated is dropped.
        """
        request = OptimStep(
            None if learning_rate is None else at_least_0(learning_rate, "learning_rate"),
            0 if expected_step is None else min(integer(expected_step, "expected_step"), 2**63 - 1),
        )
        return await self._submit(request, timeout)

    async def save(self, name: str = "", *, timeout: float | None = None) -> int:
        """Saves a checkpoint; without a name, one that the next replaces. Returns the step that is durable now."""
        return await self._submit(SaveCheckpoint(arguments.text(name, "name")), timeout)

    async def load(self, name: str, *, timeout: float | None = None) -> int:
        """Takes weights, optimizer, step number and what was accumulated from a checkpoint. Returns its step.

        Raises NotFound.
        """
        return await self._submit(LoadCheckpoint(arguments.text(name, "name")), timeout)

    async def publish(self, *, timeout: float | None = None) -> int:
        """Makes the run's weights the model's served weights; returns their version. Open streams keep theirs."""
        return await self._submit(PublishRun(), timeout)

    async def info(self, *, timeout: float | None = None) -> RunInfo:
        """Returns the run as the server has it now. Raises NotFound."""
        request = training_service_pb2.GetRunRequest(run=self._id, client=self._delivery.client)
        return run_info((await self._connection.training(lambda stub: stub.GetRun, request, timeout)).run)

    async def checkpoints(self, *, timeout: float | None = None) -> list[str]:
        """Returns the names of its checkpoints."""
        return list((await self.info(timeout=timeout)).checkpoints)

    async def delete(self, *, timeout: float | None = None) -> None:
        """Ends the run and removes its checkpoints; calls that wait fail with NotFound or Cancelled."""
        request = training_service_pb2.DeleteRunRequest(run=self._id)
        await self._connection.training(lambda stub: stub.DeleteRun, request, timeout, pure=False)
        self._abort()

    async def close(self, *, timeout: float | None = None) -> None:
        """Waits for what was called, and has the server save what it could lose; the run stays on the server.

        Raises what stands in the way of that, such as DeadlineExceeded; then what was still to be sent is dropped.
        """
        deadline = self._connection.config.deadline(timeout)  # a wrong one drops nothing
        if _forks.outlived():
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
        if _forks.outlived():
            return
        self._delivery.abort(Cancelled("the run is closed", reason="RUN_CLOSED"))

    def _submit(self, request: RunRequest[Result], timeout: float | None) -> asyncio.Future[Result]:
        _forks.check()
        return self._delivery.submit(request, self._connection.config.deadline(timeout))


def run_info(run: training_service_pb2.Run) -> RunInfo:
    """What a message tells of a run, which may be broken."""
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
