"""The table of training runs: creates, recovers after a restart, lists, deletes and saves them."""

import asyncio
import contextlib
import logging
import pathlib
import secrets
from collections.abc import Coroutine
from typing import Protocol, TypeVar

from seqloom_server.engine.core.overload import FIVE_SECONDS, overloaded
from seqloom_server.engine.core.why_broken import why_broken
from seqloom_server.engine.core.worker_thread import in_worker_thread
from seqloom_server.engine.models.registry import Registry
from seqloom_server.engine.models.served_weights import ServedWeights
from seqloom_server.engine.run_owner import ANYONE, RunOwner
from seqloom_server.engine.training import checkpoint_files
from seqloom_server.engine.training.checkpoint_files import RunMeta, RunState
from seqloom_server.engine.training.checkpoint_writer import snapshot_of
from seqloom_server.engine.training.run_weights import RunWeights
from seqloom_server.engine.training.runs_holder import RunsHolder
from seqloom_server.engine.training.step_journal import StepJournal, StepRecord
from seqloom_server.engine.training.training_run import RunEngine, TrainingRun
from seqloom_server.errors import Overload, Reason, ServerError
from seqloom_server.nn.files import atomic_folder
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.optimizer_spec import OptimizerSpec

T = TypeVar("T")

log = logging.getLogger(__name__)


class RunTableEngine(RunEngine, Protocol):
    """The methods of the engine that the table calls, in addition to those that runs call."""

    def check_serving(self) -> None: ...

    def end_jobs(self, weights: RunWeights, error: ServerError) -> None: ...


class RunTable:
    """All runs of this server. root: the runs folder, in which only this server writes from hold() to release().
    max_runs: the most runs, broken ones not counted."""

    def __init__(
        self,
        root: pathlib.Path,
        registry: Registry,
        engine: RunTableEngine,
        device: str,
        max_runs: int,
        max_held_calls: int,
    ) -> None:
        self._max_held_calls = max_held_calls
        self._root = root
        self._registry = registry
        self._engine = engine
        self._device = device
        self._max_runs = max_runs
        self._runs: dict[str, TrainingRun] = {}
        self._broken: dict[str, str] = {}  # by id: why the run cannot be loaded
        self._broken_owners: dict[str, str] = {}  # by id, of those: "" where it cannot be read
        self._changing = asyncio.Lock()
        self._holder = RunsHolder(root)
        self._released = False

    async def hold(self, address: str, *, wait: bool = True) -> bool:
        """Takes the runs folder for this server; see RunsHolder.take(). Raises InUse or OSError."""
        return await self._holder.take(address, wait=wait)

    def get(self, run_id: str, owner: RunOwner = ANYONE) -> TrainingRun:
        """Returns a run. Raises ServerError RUN_NOT_FOUND, also for one that is not the owner's, RUN_BROKEN, or
        SHUTTING_DOWN after release()."""
        self._check_held()
        run = self._runs.get(run_id)
        if run is None or not owner.may_use(run.meta.owner):
            if (why := self.broken_for(owner).get(run_id)) is not None:
                raise ServerError(Reason.RUN_BROKEN, f"run {run_id} cannot be loaded: {why}", field="run")
            raise ServerError(Reason.RUN_NOT_FOUND, f"run {run_id[:80]!r} not found", field="run")
        return run

    @property
    def broken(self) -> dict[str, str]:
        """By id, why each broken run cannot be loaded."""
        return dict(self._broken)

    def broken_for(self, owner: RunOwner) -> dict[str, str]:
        """Returns those that an owner may use."""
        return {
            run_id: why for run_id, why in self._broken.items() if owner.may_use(self._broken_owners.get(run_id, ""))
        }

    def all(self, owner: RunOwner = ANYONE) -> list[TrainingRun]:
        """Returns the runs that an owner may use, by id."""
        return [run for _, run in sorted(self._runs.items()) if owner.may_use(run.meta.owner)]

    @property
    def device_bytes(self) -> int:
        """The bytes of all runs on the device."""
        return sum(run.weights.nbytes for run in self._runs.values())

    async def create(
        self,
        served: ServedWeights,
        optimizer: OptimizerSpec,
        clip_norm: float,
        checkpoint_interval: int,
        request_id: str,
        owner: RunOwner = ANYONE,
    ) -> TrainingRun:
        """Creates an owner's run with a copy of a model's weights; a repeat with its request id returns the same run.

        clip_norm, checkpoint_interval: 0 for none. Raises ServerError OVERLOADED, OVER_LIMIT or STORAGE_FAILED.
        """
        async with self._changing:
            self._engine.check_serving()
            self._check_held()
            for run in self._runs.values():
                if request_id and run.meta.request_id == request_id and run.meta.owner == owner.name:
                    return run
            if owner.max_runs == 0:
                raise ServerError(Reason.OVER_LIMIT, "the token may have no runs")
            own = sum(run.meta.owner == owner.name for run in self._runs.values())
            if owner.max_runs is not None and own >= owner.max_runs:
                raise overloaded(f"run limit of the token reached: it has {own} runs", FIVE_SECONDS, Overload.TOKEN)
            if len(self._runs) >= self._max_runs:
                raise overloaded(f"run limit reached: there are {len(self._runs)} runs", FIVE_SECONDS, Overload.RUNS)
            meta = RunMeta(
                id=f"run-{secrets.token_hex(6)}",
                model=served.model,
                weights_version=served.version,
                optimizer=optimizer,
                clip_norm=clip_norm,
                checkpoint_interval=checkpoint_interval,
                request_id=request_id,
                owner=owner.name,
            )
            return await _finish(self._create(served.network, meta))

    async def _create(self, network: Network, meta: RunMeta) -> TrainingRun:
        folder = self._root / meta.id
        try:
            await in_worker_thread("runs", self._make, folder)
            weights = await in_worker_thread("runs", self._weights, network, meta)
            run = self._run(folder, meta, weights)
            await run.save_now()
        except BaseException:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(atomic_folder.remove, folder)
            raise
        self._runs[meta.id] = run
        return run

    def _make(self, folder: pathlib.Path) -> None:
        self._holder.check_in_place()
        folder.mkdir(parents=True)

    def _run(
        self, folder: pathlib.Path, meta: RunMeta, weights: RunWeights, lost: list[StepRecord] | None = None
    ) -> TrainingRun:
        return TrainingRun(self._engine, self._registry, folder, meta, weights, self._max_held_calls, lost)

    def _weights(self, network: Network, meta: RunMeta) -> RunWeights:
        copies = {name: tensor.detach().clone() for name, tensor in network.parameters().items()}
        fork = Network(network.spec, copies, network.device)
        journal = StepJournal(self._root / meta.id / "steps.jsonl", self._holder.check_in_place)
        return RunWeights(meta.model, fork, meta.optimizer, meta.clip_norm, journal)

    async def delete(self, run_id: str, owner: RunOwner = ANYONE) -> None:
        """Ends a run and removes its folder; broken runs can be deleted, too.

        Raises ServerError RUN_NOT_FOUND, STORAGE_FAILED, or SHUTTING_DOWN after release().
        """
        async with self._changing:
            self._check_held()
            if run_id not in self.broken_for(owner):
                self.get(run_id, owner)
            await _finish(self._delete(run_id))

    async def _delete(self, run_id: str) -> None:
        run = self._runs.pop(run_id, None)
        if run is not None:
            gone = ServerError(Reason.RUN_NOT_FOUND, f"run {run_id} has been deleted", field="run")
            self._engine.end_jobs(run.weights, gone)
            await run.end(gone)
            run.weights.journal.close(gone)
        try:
            await in_worker_thread("runs", self._remove, self._root / run_id)
        except ServerError as error:
            if not isinstance(error.__cause__, FileNotFoundError):  # a user has removed it
                self._broken[run_id] = f"the run was deleted, but its folder cannot be removed: {error.message}"
                if run is not None:
                    self._broken_owners[run_id] = run.meta.owner
                raise
        self._broken.pop(run_id, None)
        self._broken_owners.pop(run_id, None)

    def _remove(self, folder: pathlib.Path) -> None:
        self._holder.check_in_place()
        atomic_folder.remove(folder)

    async def recover(self, *, strict: bool = False) -> None:
        """Loads the runs of an earlier server; those that cannot be loaded are logged and listed as broken.

        strict: raise RUN_BROKEN at the first broken one. Raises STORAGE_FAILED if the root cannot be read.
        """
        for folder in await in_worker_thread("runs", checkpoint_files.run_folders, self._root):
            try:
                await self._recover(folder)
            except Exception as error:
                why = self._broken[folder.name] = why_broken(folder.name, error)
                self._broken_owners[folder.name] = await asyncio.to_thread(checkpoint_files.owner_of, folder)
                if strict:
                    raise ServerError(Reason.RUN_BROKEN, f"{folder.name}: {why}") from error
                log.error("run %s cannot be loaded and is not available: %s", folder.name, why)

    async def _recover(self, folder: pathlib.Path) -> None:
        state, weights, lost, names = await asyncio.to_thread(self._read, folder)
        run = self._run(folder, state.meta, weights, lost)
        run.checkpoints.names = names
        run.take_replies(state.calls)
        self._runs[state.meta.id] = run
        log.info(
            "run %s resumes at step %d; clients send the %d steps after it again", folder.name, run.step, len(lost)
        )

    def _read(self, folder: pathlib.Path) -> tuple[RunState, RunWeights, list[StepRecord], list[str]]:
        state = checkpoint_files.load_latest(folder)
        weights = self._restored(state)
        return state, weights, weights.journal.read(weights.step), checkpoint_files.names(folder)

    def _restored(self, state: RunState) -> RunWeights:
        network = Network(state.spec, state.parameters, self._device)
        weights = self._weights(network, state.meta)
        snapshot = snapshot_of(state)
        for _ in weights.restore(snapshot):
            pass
        weights.done = dict(snapshot.done)
        return weights

    async def save_all(self) -> None:
        """Saves every run, while the server shuts down; those that cannot be saved are logged."""
        for run in [] if self._released else self.all():
            try:
                await run.save_now()
            except (ServerError, asyncio.CancelledError) as error:
                log.error("run %s could not be saved at step %d: %s", run.meta.id, run.step, error)

    async def write_all(self) -> None:
        """Waits until every run's checkpoints that were made are written; those that cannot be are logged."""
        for run in [] if self._released else self.all():
            await run.checkpoints.written()

    async def announce_shutdown(self) -> None:
        """Announces to a server that waits for the runs folder that it will be released."""
        await asyncio.to_thread(self._holder.announce_shutdown)

    async def release(self) -> None:
        """Ends every run and releases the runs folder; this server does not write in it any more."""
        async with self._changing:  # waits for runs that are being created or deleted
            if self._released:
                return
            self._released = True
            for run in self.all():
                await run.end(_released())
                await asyncio.to_thread(run.weights.journal.close, _released())
            await asyncio.to_thread(self._holder.give_back)

    def _check_held(self) -> None:
        if self._released:
            raise _released()


def _released() -> ServerError:
    return ServerError(Reason.SHUTTING_DOWN, "the server is shutting down and has released its runs")


async def _finish(coroutine: Coroutine[None, None, T]) -> T:
    """Runs a coroutine to its end, even if the caller is cancelled."""
    task = asyncio.ensure_future(coroutine)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            await task
        raise
