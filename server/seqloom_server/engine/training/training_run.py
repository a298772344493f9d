"""A training run on the event loop: what forward_backward, step, save, load and publish do."""

import asyncio
import logging
import pathlib
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from seqloom_server.engine.core.overload import memory_exhausted
from seqloom_server.engine.core.training_job import Job, Task, TrainingCall
from seqloom_server.engine.models.registry import Registry
from seqloom_server.engine.training.call_order import CallOrder
from seqloom_server.engine.training.checkpoint_files import CallsDone, RunMeta
from seqloom_server.engine.training.checkpoint_writer import CheckpointWriter
from seqloom_server.engine.training.numbered_calls import CallId, KeptReply, NumberedCalls
from seqloom_server.engine.training.replies import Done, Published, Reply, from_json
from seqloom_server.engine.training.run_weights import Accumulated, RunWeights, Snapshot, Stepped
from seqloom_server.engine.training.step_journal import StepRecord
from seqloom_server.errors import ServerError
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.losses.training_example import Example, GradientRequest

log = logging.getLogger(__name__)

NOTHING = GradientRequest()


class RunEngine(Protocol):
    """What a run needs of the engine. train: takes a job on, or raises. run_job: also while the server shuts down.

    stepped, deduplicated, run_not_saved: for the metrics.
    """

    def train(self, job: Job) -> None: ...

    def run_job(self, job: Job) -> None: ...

    def stepped(self, model: str) -> None: ...

    def deduplicated(self, model: str) -> None: ...

    def run_not_saved(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. calls_durable: the last call of the asking client that would survive a restart."""

    step: int
    durable_step: int
    calls_durable: int


class TrainingRun:
    """A run that is not broken. meta: what never changes of it. folder: where its checkpoints are.

    registry: where it is published. max_held_calls: how many calls may wait for earlier ones. lost: where it goes on
    after a restart, the steps that are to be done again.
    """

    def __init__(
        self,
        engine: RunEngine,
        registry: Registry,
        folder: pathlib.Path,
        meta: RunMeta,
        weights: RunWeights,
        max_held_calls: int,
        lost: list[StepRecord] | None = None,
    ) -> None:
        self.meta = meta
        self.folder = folder
        self.weights = weights
        self.step = weights.step
        self.loss = weights.loss
        self.accumulated_calls = weights.accumulated_calls
        self._engine = engine
        self._registry = registry
        self._recovered = lost is not None
        self.checkpoints = CheckpointWriter(
            folder,
            meta,
            weights.network.spec,
            weights.journal,
            weights.step,
            weights.done,
            failed=engine.run_not_saved,
        )
        self.calls = NumberedCalls(
            CallOrder(weights.done, weights.step, lost or ()),
            max_held_calls,
            deduplicated=lambda: engine.deduplicated(meta.model),
            forgotten=weights.forget,
        )

    def progress(self, client: str) -> Progress:
        """Returns what every reply says of the run."""
        return Progress(self.step, self.checkpoints.step, self.checkpoints.calls.get(client, 0))

    async def forward_backward(
        self, call: CallId, digest: str, examples: list[Example] | ServerError, nbytes: int
    ) -> Accumulated:
        """Adds the gradient of the examples to what the next step applies.

        examples: or the error with which the call is refused, which uses up its number, too. Raises ServerError.
        """

        def begin() -> Awaitable[Accumulated]:
            if isinstance(examples, ServerError):
                return self._task(call, lambda: _refuse(examples))
            job = TrainingCall(
                self.weights,
                asyncio.get_running_loop().create_future(),
                call=call.key,
                caller=call.caller,
                examples=examples,
                request=NOTHING,
                steps=sum(len(example.xs) for example in examples),
                nbytes=nbytes,
            )
            self._engine.train(job)
            return self._accumulated(job.outcome)

        reply = await self.calls.call(call, digest, begin)
        assert isinstance(reply, Accumulated)
        return reply

    async def _accumulated(self, outcome: "asyncio.Future[Accumulated]") -> Accumulated:
        accumulated = await outcome
        self.loss = float(accumulated.losses.sum())
        self.accumulated_calls += 1
        return accumulated

    def learn_step(self, call: CallId, calls: Mapping[str, int]) -> None:
        """Takes a lost step from a client that sends it again. calls: those that its reply named."""
        if call.step and calls and self._recovered:  # else nothing was lost that a caller could name
            self.calls.order.learn(StepRecord(call.step, call.client, call.number, {**calls, call.client: call.number}))

    async def apply_step(self, call: CallId, learning_rate: float | None, expected_step: int) -> Stepped:
        """Applies what was accumulated. learning_rate: of this step, None for the optimizer's own.

        Raises ServerError.
        """
        digest = f"step {learning_rate} {expected_step}"
        interval = self.meta.checkpoint_interval

        def begin() -> Awaitable[Stepped]:
            return finish(
                self._task(call, lambda: self.weights.apply_step(call.key, learning_rate, expected_step, interval))
            )

        async def finish(outcome: Awaitable[tuple[Stepped | ServerError, Snapshot | None]]) -> Stepped:
            stepped, snapshot = await outcome
            self.accumulated_calls = 0
            if isinstance(stepped, ServerError):
                await self._keep_refusal(snapshot, KeptReply(call.client, call.number, digest, stepped))
                raise stepped
            self.step = stepped.step
            self._engine.stepped(self.meta.model)
            if snapshot is not None:
                self.checkpoints.write_soon(snapshot, self.calls)
            elif interval and stepped.step % interval == 0:  # memory was short for it
                self._engine.run_not_saved()
            return stepped

        reply = await self.calls.call(call, digest, begin, is_step=True)
        assert isinstance(reply, Stepped)
        return reply

    async def _keep_refusal(self, snapshot: Snapshot | None, reply: KeptReply) -> None:
        """Makes durable that a refused step has dropped what was accumulated, before it is answered: after a restart
        clients send calls again that are not durable, and the dropped ones must not come back."""
        try:
            if snapshot is None:
                self._engine.run_not_saved()
                raise memory_exhausted("the checkpoint")
            await self.checkpoints.write(snapshot, self.calls, reply=reply)
        except ServerError as error:
            log.error("run %s: a restart would bring back what a step has dropped: %s", self.meta.id, error)

    async def save(self, call: CallId, name: str) -> None:
        """Writes a checkpoint, also under a name where one is given. Raises ServerError STORAGE_FAILED or another."""
        digest = f"save {name}"

        async def finish(outcome: Awaitable[Snapshot]) -> Done:
            reply = KeptReply(call.client, call.number, digest, Done())
            await self.checkpoints.write(await outcome, self.calls, name, reply)
            return Done()

        await self.calls.call(call, digest, lambda: finish(self._task(call, lambda: self.weights.snapshot(call.key))))

    async def load(self, call: CallId, name: str) -> None:
        """Goes back to a named checkpoint; what was accumulated since is dropped.

        Raises ServerError CHECKPOINT_NOT_FOUND, CHECKPOINT_BROKEN or another.
        """
        digest = f"load {name}"
        if self.calls.order.waiting_for():  # lost steps, which are only given up for what can be loaded
            await self.checkpoints.read(name)

        def begin() -> Awaitable[Done]:
            return finish(self.calls.close())

        async def finish(others: set[asyncio.Task[None]]) -> Done:
            try:
                if others:
                    await asyncio.wait(others)
                snapshot = await self.checkpoints.read(name)

                def program() -> Generator[None, None, Snapshot]:
                    yield from self.weights.restore(snapshot)
                    self.weights.mark(call.key)
                    return replace(snapshot, done=dict(self.weights.done))  # no copy, for which memory may be short

                restored = await self._task(call, program)
                self.step, self.loss = restored.step, restored.loss
                self.accumulated_calls = restored.accumulated_calls
                self.calls.order.planned = restored.step
                await self.checkpoints.forget_steps()  # not before: a run that memory does not suffice for keeps them
                reply = KeptReply(call.client, call.number, digest, Done())
                await self.checkpoints.write(restored, self.calls, reply=reply)
            finally:
                self.calls.open()
            return Done()

        await self.calls.call(call, digest, begin, gives_up_lost=True)

    async def publish(self, call: CallId) -> Published:
        """Makes the run's weights the model's served ones.

        Raises ServerError MODEL_NOT_FOUND, OVERLOADED or another.
        """

        def program() -> Generator[None, None, tuple[Network, Snapshot]]:
            network = yield from self.weights.fork()
            return network, (yield from self.weights.snapshot(call.key))

        async def finish(outcome: Awaitable[tuple[Network, Snapshot]]) -> Published:
            network, snapshot = await outcome
            # in one turn, or a later checkpoint would say that this call is done, without its reply
            async with self.checkpoints.turn():
                published = Published((await self._registry.publish(self.meta.model, network)).weights_version)
                kept = KeptReply(call.client, call.number, "publish", published)
                await self.checkpoints.write_next(snapshot, self.calls, reply=kept)
            return published

        def begin() -> Awaitable[Published]:
            self._registry.check_live_versions(self.meta.model)
            return finish(self._task(call, program))

        reply = await self.calls.call(call, "publish", begin)
        assert isinstance(reply, Published)
        return reply

    async def save_now(self) -> None:
        """Writes a checkpoint of the run as it is, when it is made and at shutdown. Raises ServerError."""
        await self.checkpoints.settle()
        await self.checkpoints.write(await self._job(self.weights.snapshot), self.calls)

    async def end(self, error: ServerError) -> None:
        """Ends the calls that wait with the error; afterwards nothing is written in the run's folder."""
        self.calls.end(error)
        await self.checkpoints.end(error)

    def _job(self, start: Callable[[], Generator[None, None, Any]]) -> "asyncio.Future[Any]":
        task = Task(self.weights, asyncio.get_running_loop().create_future(), start=start)
        self._engine.run_job(task)
        return task.outcome

    def _task(self, call: CallId, start: Callable[[], Generator[None, None, Any]]) -> "asyncio.Future[Any]":
        task = Task(
            self.weights, asyncio.get_running_loop().create_future(), call=call.key, caller=call.caller, start=start
        )
        self._engine.train(task)
        return task.outcome

    def take_replies(self, calls: dict[str, CallsDone]) -> None:
        """Keeps the replies that are in the checkpoint from which this run was restored."""
        for client, done in calls.items():
            for stored in done.replies:
                try:
                    reply: Reply | ServerError = from_json(stored.reply)
                except (KeyError, TypeError, ValueError):
                    log.warning("run %s: the reply to call %d of %s is lost", self.meta.id, stored.number, client)
                    continue
                self.calls.keep(KeptReply(client, stored.number, stored.digest, reply))


def _refuse(error: ServerError) -> Generator[None, None, None]:
    yield
    raise error
