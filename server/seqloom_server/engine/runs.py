"""The training runs of one server: made, found again after a restart, listed, ended, saved."""

import asyncio
import contextlib
import logging
import pathlib
import secrets
import shutil
from typing import Any, Protocol

from seqloom_server.engine import checkpoints
from seqloom_server.engine.checkpoints import RunMeta, RunState
from seqloom_server.engine.jobs import Jobs
from seqloom_server.engine.journal import Journal
from seqloom_server.engine.registry import Registry, off_loop
from seqloom_server.engine.run import Host, Run
from seqloom_server.engine.run_checkpoints import snapshot_of
from seqloom_server.engine.run_weights import RunWeights
from seqloom_server.engine.served import ServedWeights
from seqloom_server.engine.training import Job
from seqloom_server.errors import Reason, ServerError
from seqloom_server.nn.network import Network
from seqloom_server.nn.optim import OptimizerSpec

log = logging.getLogger(__name__)


class Device(Protocol):
    """What runs need of the engine."""

    jobs: Jobs

    def train(self, job: Job) -> None: ...

    def run_job(self, job: Job) -> None: ...

    def check_serving(self) -> None: ...

    def stepped(self, model: str) -> None: ...

    def deduplicated(self, model: str) -> None: ...


class Runs(Host):
    """Every run that is alive. root: the folder of their folders. max_runs: how many there may be."""

    def __init__(
        self, root: pathlib.Path, registry: Registry, engine: Device, device: str, max_runs: int, max_held_calls: int
    ) -> None:
        self.max_held_calls = max_held_calls
        self._root = root
        self._registry = registry
        self._engine = engine
        self._device = device
        self._max_runs = max_runs
        self._runs: dict[str, Run] = {}
        self._changing = asyncio.Lock()

    def get(self, run_id: str) -> Run:
        """Raises ServerError RUN_NOT_FOUND."""
        run = self._runs.get(run_id)
        if run is None:
            raise ServerError(Reason.RUN_NOT_FOUND, f"there is no run {run_id[:80]!r}", field="run")
        return run

    def all(self) -> list[Run]:
        """The runs, by id."""
        return [self._runs[run_id] for run_id in sorted(self._runs)]

    @property
    def device_bytes(self) -> int:
        """Bytes of all runs on the device."""
        return sum(run.weights.nbytes for run in self._runs.values())

    async def create(
        self,
        served: ServedWeights,
        optimizer: OptimizerSpec,
        clip_norm: float,
        checkpoint_interval: int,
        request_id: str,
    ) -> Run:
        """Forks a model's weights; returns the run that an earlier try of the same request made.

        clip_norm, checkpoint_interval: 0 for none. Raises ServerError OVERLOADED or STORAGE_FAILED.
        """
        self._engine.check_serving()
        async with self._changing:
            for run in self._runs.values():
                if request_id and run.meta.request_id == request_id:
                    return run
            if len(self._runs) >= self._max_runs:
                raise ServerError(Reason.OVERLOADED, f"there are {len(self._runs)} runs: no more now", retry_after=5.0)
            meta = RunMeta(
                id=f"run-{secrets.token_hex(6)}",
                model=served.model,
                weights_version=served.version,
                optimizer=optimizer,
                clip_norm=clip_norm,
                checkpoint_interval=checkpoint_interval,
                request_id=request_id,
            )
            made: Run = await _to_the_end(self._make(served.network, meta))
            return made

    async def _make(self, network: Network, meta: RunMeta) -> Run:
        folder = self._root / meta.id
        try:
            await off_loop(lambda: folder.mkdir(parents=True), of="runs")
            weights = await off_loop(self._weights, network, meta, of="runs")
            run = Run(self, folder, meta, weights)
            await run.save_now()
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise
        self._runs[meta.id] = run
        return run

    def _weights(self, network: Network, meta: RunMeta) -> RunWeights:
        copies = {name: tensor.detach().clone() for name, tensor in network.parameters().items()}
        fork = Network(network.spec, copies, network.device)
        return RunWeights(
            meta.model, fork, meta.optimizer, meta.clip_norm, Journal(self._root / meta.id / "steps.jsonl")
        )

    async def delete(self, run_id: str) -> None:
        """Ends a run and removes its folder. Raises ServerError RUN_NOT_FOUND or STORAGE_FAILED."""
        async with self._changing:
            run = self.get(run_id)
            del self._runs[run_id]
            gone = ServerError(Reason.RUN_NOT_FOUND, f"run {run_id} has been deleted", field="run")
            self._engine.jobs.abandon([job for job in self._engine.jobs if job.weights is run.weights], gone)
            await run.end(gone)
            await off_loop(shutil.rmtree, run.folder, of="runs")

    async def recover(self) -> None:
        """Finds the runs of an earlier server; one that is broken is left where it is, and logged."""
        for folder in await asyncio.to_thread(checkpoints.run_folders, self._root):
            try:
                state: RunState = await asyncio.to_thread(checkpoints.load_latest, folder)
                weights = await asyncio.to_thread(self._restored, state)
            except (checkpoints.BrokenCheckpoint, OSError) as error:
                log.error("run %s cannot be loaded, and is left alone: %s", folder.name, error)
                continue
            lost = weights.journal.read(weights.step)
            run = Run(self, folder, state.meta, weights, lost)
            run.checkpoints.names = await asyncio.to_thread(checkpoints.names, folder)
            run.take_replies(state.calls)
            self._runs[state.meta.id] = run
            log.info(
                "run %s goes on from step %d; %d steps after it are to be sent again", folder.name, run.step, len(lost)
            )

    def _restored(self, state: RunState) -> RunWeights:
        network = Network(state.spec, state.parameters, self._device)
        weights = self._weights(network, state.meta)
        snapshot = snapshot_of(state)
        for _ in weights.restore(snapshot):
            pass
        weights.done = dict(snapshot.done)
        return weights

    async def save_all(self) -> None:
        """Saves every run, while the server shuts down; one that cannot be saved is logged."""
        for run in self.all():
            try:
                await run.save_now()
            except (ServerError, asyncio.CancelledError) as error:
                log.error("run %s could not be saved at step %d: %s", run.meta.id, run.step, error)

    def train(self, job: Job) -> None:
        self._engine.train(job)

    def run_job(self, job: Job) -> None:
        self._engine.run_job(job)

    def check_live_versions(self, model: str) -> None:
        self._registry.check_live_versions(model)

    async def publish(self, model: str, network: Network) -> int:
        return (await self._registry.publish(model, network)).weights_version

    def stepped(self, model: str) -> None:
        self._engine.stepped(model)

    def deduplicated(self, model: str) -> None:
        self._engine.deduplicated(model)


async def _to_the_end(coroutine: Any) -> Any:
    """Finishes what has begun, also where its caller goes away."""
    task = asyncio.ensure_future(coroutine)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            await task
        raise
