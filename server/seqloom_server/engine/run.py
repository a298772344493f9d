"""One training run on the event loop: what each call on it does, and what of it is durable."""

import asyncio
import logging
import pathlib
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol

from seqloom_server.engine import checkpoints
from seqloom_server.engine.call_order import CallOrder
from seqloom_server.engine.checkpoints import CallsDone, RunMeta, RunState, StoredReply
from seqloom_server.engine.journal import StepRecord
from seqloom_server.engine.replies import Done, Published, Reply, from_json, to_json
from seqloom_server.engine.run_calls import CallId, RunCalls
from seqloom_server.engine.run_weights import Accumulated, RunWeights, Snapshot, Stepped
from seqloom_server.engine.training import Job, Task, TrainingCall
from seqloom_server.errors import Reason, ServerError
from seqloom_server.nn.gradients import Example, Wants
from seqloom_server.nn.network import Network

log = logging.getLogger(__name__)

NOTHING = Wants()


class Host(Protocol):
    """What a run needs of the engine. train: takes a job on, or raises. run_job: also while the server shuts down."""

    max_held_calls: int

    def train(self, job: Job) -> None: ...

    def run_job(self, job: Job) -> None: ...

    async def publish(self, model: str, network: Network) -> int: ...

    def stepped(self, model: str) -> None: ...

    def deduplicated(self, model: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is. calls_durable: of the client that asks, calls up to this one would outlive a restart."""

    step: int
    durable_step: int
    calls_durable: int


class Run:
    """A run that is alive. meta: what never changes of it. folder: where its checkpoints are."""

    def __init__(
        self, host: Host, folder: pathlib.Path, meta: RunMeta, weights: RunWeights, lost: list[StepRecord] | None = None
    ) -> None:
        self.meta = meta
        self.folder = folder
        self.weights = weights
        self.step = self.durable_step = weights.step
        self.loss = weights.loss
        self.accumulated_calls = weights.accumulated_calls
        self._host = host
        self.checkpoints: list[str] = []  # their names, in order
        self._durable_calls = dict(weights.done)
        self._journal = weights.journal
        self._writing = asyncio.Lock()
        self._waiting: Snapshot | None = None  # to be written when the one before it is
        self._writer: asyncio.Task[None] | None = None
        self._ended: ServerError | None = None
        self.calls = RunCalls(
            CallOrder(weights.done, weights.step, lost or ()),
            host.max_held_calls,
            lambda: host.deduplicated(meta.model),
        )

    def progress(self, client: str) -> Progress:
        """What every reply tells."""
        return Progress(self.step, self.durable_step, self._durable_calls.get(client, 0))

    async def forward_backward(
        self, call: CallId, digest: str, examples: list[Example] | ServerError, nbytes: int
    ) -> Accumulated:
        """Adds the gradient of the examples to what the next step applies; or is refused with the error given, which
        uses up the call's number too. Raises ServerError."""

        def begin() -> Awaitable[Accumulated]:
            if isinstance(examples, ServerError):
                return self._task(call, lambda: _refuse(examples))
            job = TrainingCall(
                self.weights,
                asyncio.get_running_loop().create_future(),
                call=(call.client, call.number),
                examples=examples,
                wants=NOTHING,
                steps=sum(len(example.xs) for example in examples),
                nbytes=nbytes,
            )
            self._host.train(job)
            return self._accumulated(job.outcome)

        reply = await self.calls.call(call, digest, begin)
        assert isinstance(reply, Accumulated)
        return reply

    async def _accumulated(self, outcome: "asyncio.Future[Accumulated]") -> Accumulated:
        accumulated = await outcome
        self.loss = float(accumulated.losses.sum())
        self.accumulated_calls += 1
        return accumulated

    async def apply(self, call: CallId, learning_rate: float, expected_step: int, calls: dict[str, int]) -> Stepped:
        """Applies what was accumulated. calls: what the reply had told, of a step that is sent again.

        Raises ServerError.
        """
        if call.step and calls:
            self.calls.order.learn(StepRecord(call.step, call.client, call.number, {**calls, call.client: call.number}))

        def program() -> Generator[None, None, tuple[Stepped, Snapshot | None]]:
            stepped = yield from self.weights.apply((call.client, call.number), learning_rate or None, expected_step)
            interval = self.meta.checkpoint_interval
            due = interval and stepped.step % interval == 0
            return stepped, (yield from self.weights.snapshot()) if due else None

        async def finish(outcome: Awaitable[tuple[Stepped, Snapshot | None]]) -> Stepped:
            stepped, snapshot = await outcome
            self.step, self.accumulated_calls = stepped.step, 0
            self._host.stepped(self.meta.model)
            if snapshot is not None:
                self._write_soon(snapshot)
            return stepped

        digest = f"step {learning_rate} {expected_step}"
        reply = await self.calls.call(call, digest, lambda: finish(self._task(call, program)), is_step=True)
        assert isinstance(reply, Stepped)
        return reply

    async def save(self, call: CallId, name: str) -> None:
        """Writes a checkpoint, also under a name where one is given. Raises ServerError STORAGE_FAILED or another."""
        digest = f"save {name}"

        def program() -> Generator[None, None, Snapshot]:
            self.weights.mark((call.client, call.number))
            return (yield from self.weights.snapshot())

        async def finish(outcome: Awaitable[Snapshot]) -> Done:
            await self._write(await outcome, name, StoredReply(call.number, digest, to_json(Done())), call.client)
            return Done()

        await self.calls.call(call, digest, lambda: finish(self._task(call, program)))

    async def load(self, call: CallId, name: str) -> None:
        """Goes back to a named checkpoint; what was accumulated since is dropped.

        Raises ServerError CHECKPOINT_NOT_FOUND, CHECKPOINT_BROKEN or another.
        """
        digest = f"load {name}"
        if self.calls.order.waiting_for():  # whoever goes back gives up what was lost
            await self._read(name)
            self.calls.order.forget_lost()

        def begin() -> Awaitable[Done]:
            return finish(self.calls.close())

        async def finish(others: set[asyncio.Task[None]]) -> Done:
            try:
                if others:
                    await asyncio.wait(others)
                snapshot = await self._read(name)

                def program() -> Generator[None, None, Snapshot]:
                    yield from self.weights.restore(snapshot)
                    self.weights.mark((call.client, call.number))
                    return (yield from self.weights.snapshot())

                restored = await self._task(call, program)
                self.step, self.loss = restored.step, restored.loss
                self.accumulated_calls = restored.accumulated_calls
                self.calls.order.planned = restored.step
                self._waiting = None
                self._journal.clear()
                await self._write(restored, "", StoredReply(call.number, digest, to_json(Done())), call.client)
            finally:
                self.calls.open()
            return Done()

        await self.calls.call(call, digest, begin)

    async def publish(self, call: CallId) -> Published:
        """Makes the run's weights the model's served ones.

        Raises ServerError MODEL_NOT_FOUND, OVERLOADED or another.
        """

        def program() -> Generator[None, None, tuple[Network, Snapshot]]:
            network = yield from self.weights.fork()
            self.weights.mark((call.client, call.number))
            return network, (yield from self.weights.snapshot())

        async def finish(outcome: Awaitable[tuple[Network, Snapshot]]) -> Published:
            network, snapshot = await outcome
            async with self._writing:  # or a later checkpoint would say that this call is done, without its reply
                published = Published(await self._host.publish(self.meta.model, network))
                reply = StoredReply(call.number, "publish", to_json(published))
                await self._write_next(snapshot, "", reply, call.client)
            return published

        reply = await self.calls.call(call, "publish", lambda: finish(self._task(call, program)))
        assert isinstance(reply, Published)
        return reply

    async def save_new(self) -> None:
        """Writes the run for the first time. Raises ServerError."""
        await self._write(await self._job(self.weights.snapshot))

    async def written(self) -> None:
        """Returns when nothing is being written in the background."""
        self._waiting = None
        if self._writer is not None:
            await asyncio.wait({self._writer})

    async def end(self, error: ServerError) -> None:
        """Ends the calls that wait with the error; after this nothing is written in the run's folder any more."""
        self._ended = error
        self.calls.end(error)
        await self.written()
        async with self._writing:
            pass

    async def save_at_end(self) -> None:
        """Writes the run as it is, while the server shuts down. Raises ServerError."""
        await self.written()
        await self._write(await self._job(self.weights.snapshot))

    def _job(self, start: Callable[[], Generator[None, None, Any]]) -> "asyncio.Future[Any]":
        task = Task(self.weights, asyncio.get_running_loop().create_future(), start=start)
        self._host.run_job(task)
        return task.outcome

    def _task(self, call: CallId, start: Callable[[], Generator[None, None, Any]]) -> "asyncio.Future[Any]":
        task = Task(
            self.weights, asyncio.get_running_loop().create_future(), call=(call.client, call.number), start=start
        )
        self._host.train(task)
        return task.outcome

    def _write_soon(self, snapshot: Snapshot) -> None:
        """Writes a snapshot in the background; one that still waits gives way to it."""
        self._waiting = snapshot
        if self._writer is None or self._writer.done():
            self._writer = asyncio.ensure_future(self._write_waiting())

    async def _write_waiting(self) -> None:
        while self._waiting is not None:
            snapshot, self._waiting = self._waiting, None
            try:
                await self._write(snapshot)
            except ServerError as error:
                log.error("run %s: no checkpoint of step %d: %s", self.meta.id, snapshot.step, error)

    async def _write(
        self, snapshot: Snapshot, name: str = "", extra: StoredReply | None = None, extra_client: str = ""
    ) -> None:
        async with self._writing:
            await self._write_next(snapshot, name, extra, extra_client)

    async def _write_next(self, snapshot: Snapshot, name: str, extra: StoredReply | None, extra_client: str) -> None:
        if self._ended is not None:
            raise self._ended
        done = snapshot.done
        if extra is None and any(number > done.get(client, 0) for client, number in self._durable_calls.items()):
            return  # a background checkpoint that a later one has overtaken
        state = self._state(snapshot)
        if extra is not None:
            state.calls[extra_client].replies.append(extra)
        await _files(checkpoints.save_run, self.folder, name, state)
        if name:
            self.checkpoints = sorted({*self.checkpoints, name})
        self.durable_step = snapshot.step
        self._durable_calls = done
        try:
            self._journal.forget(snapshot.step)
        except OSError as error:
            log.error("run %s: its journal cannot be written: %s", self.meta.id, error)

    async def _read(self, name: str) -> Snapshot:
        state = await _files(checkpoints.load_named, self.folder, name)
        if state.spec != self.weights.network.spec or state.meta.optimizer != self.meta.optimizer:
            what = f"checkpoint {name!r} is of another network or optimizer"
            raise ServerError(Reason.CHECKPOINT_BROKEN, what)
        return snapshot_of(state)

    def _state(self, snapshot: Snapshot) -> RunState:
        kept = self.calls.kept(snapshot.done)
        return RunState(
            meta=self.meta,
            spec=self.weights.network.spec,
            step=snapshot.step,
            loss=snapshot.loss,
            accumulated_calls=snapshot.accumulated_calls,
            parameters=snapshot.parameters,
            optimizer=snapshot.optimizer,
            accumulated=snapshot.accumulated,
            calls={
                client: CallsDone(done, [StoredReply(*each) for each in kept.get(client, ())])
                for client, done in snapshot.done.items()
            },
        )

    def take_replies(self, calls: dict[str, CallsDone]) -> None:
        """Takes in the replies that the checkpoint kept of which this run is made."""
        for client, done in calls.items():
            for stored in done.replies:
                try:
                    reply: Reply | ServerError = from_json(stored.reply)
                except (KeyError, TypeError, ValueError):
                    log.warning("run %s: the reply to call %d of %s is lost", self.meta.id, stored.number, client)
                    continue
                self.calls.keep(client, stored.number, stored.digest, reply)


def snapshot_of(state: RunState) -> Snapshot:
    """What a checkpoint holds for the device."""
    return Snapshot(
        state.parameters,
        state.optimizer,
        state.accumulated,
        state.accumulated_calls,
        state.step,
        state.loss,
        {client: calls.done for client, calls in state.calls.items()},
    )


def _refuse(error: ServerError) -> Generator[None, None, None]:
    yield
    raise error


async def _files(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs what reads and writes checkpoints in a worker thread, to its end. Raises ServerError."""
    try:
        return await asyncio.shield(asyncio.to_thread(function, *arguments))
    except FileNotFoundError as error:
        raise ServerError(
            Reason.CHECKPOINT_NOT_FOUND, f"there is no checkpoint {arguments[1]!r}", field="name"
        ) from error
    except checkpoints.BrokenCheckpoint as error:
        raise ServerError(Reason.CHECKPOINT_BROKEN, str(error)) from error
    except OSError as error:
        raise ServerError(
            Reason.STORAGE_FAILED, f"the server's folder of runs failed: {error.strerror or error}"
        ) from error
