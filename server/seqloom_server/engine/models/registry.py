"""The registry of served models: loads, creates, imports and publishes them, and tracks the versions in use.

Files are read and written, and networks built, in a worker thread, one change at a time, and to the end even if the
caller is cancelled; the served weights are then replaced by one assignment on the event loop. Other servers may read
the folders at any time; a server that changes one holds their common lock.
"""

import asyncio
import logging
import pathlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import ParamSpec, Protocol

from seqloom_server.engine.core.names import check_name
from seqloom_server.engine.core.overload import ONE_SECOND, overloaded
from seqloom_server.engine.core.sequence import Weights
from seqloom_server.engine.core.why_broken import why_broken
from seqloom_server.engine.core.worker_thread import in_worker_thread
from seqloom_server.engine.models.model_folders import ModelFolders
from seqloom_server.engine.models.served_weights import ServedWeights, warm_up
from seqloom_server.errors import Overload, Reason, ServerError
from seqloom_server.nn.files import model_folder
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.spec import ModelSpec

P = ParamSpec("P")

log = logging.getLogger(__name__)

_KEPT_SECONDS = 60.0  # for which the SDK tries, by default, to resume a stream


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The description of a served model."""

    name: str
    spec: ModelSpec
    weights_version: int
    parameter_count: int


class Watcher(Protocol):
    """Is notified on the event loop of changes of the served models.

    gone: the model is not served any more, and no open sequence uses it.
    """

    def serving(self, name: str, version: int) -> None: ...

    def unloaded(self, name: str) -> None: ...

    def gone(self, name: str) -> None: ...


class Registry:
    """The served models of the folder `root`, on one device.

    max_live_versions: of one model's weights; open sequences keep their version alive. max_live_bytes: of those
    versions and their states; within it there may be more versions. max_model_bytes: of one model's weights. threads:
    torch's, for slices on the CPU; 0 chooses by network. watchers: notified of changes.
    """

    def __init__(
        self,
        root: pathlib.Path,
        device: str,
        max_live_versions: int,
        max_model_bytes: int = 2 << 30,
        max_live_bytes: int = 0,
        *,
        threads: int = 0,
    ) -> None:
        self._folders = ModelFolders(root)
        self._device = device
        self._max_live_versions = max_live_versions
        self._max_live_bytes = max_live_bytes
        self._max_model_bytes = max_model_bytes
        self._threads = threads
        self._served: dict[str, ServedWeights] = {}
        self._users: dict[ServedWeights, int] = {}  # number of open sequences of each version in use
        self._kept: dict[ServedWeights, asyncio.TimerHandle] = {}  # for streams that were lost
        self._broken: dict[str, str] = {}  # by name: why the model cannot be loaded
        self._last: dict[str, int] = {}  # by name: the highest version so far in this process
        self._changing = asyncio.Lock()
        self._change: asyncio.Task[ModelInfo] | None = None  # the change that holds the lock
        self.watchers: list[Watcher] = []

    def current(self, name: str, version: int = 0) -> ServedWeights:
        """Returns the served weights of a model.

        Raises MODEL_NOT_FOUND, MODEL_BROKEN, or VERSION_MISMATCH if `version` is neither 0 nor the version served.
        """
        served = self._served.get(name)
        if served is None:
            if name in self._broken:
                why = self._broken[name]
                raise ServerError(Reason.MODEL_BROKEN, f"model {name!r} cannot be loaded: {why}", field="model")
            raise ServerError(Reason.MODEL_NOT_FOUND, f"no model {name[:80]!r} is served", field="model")
        if version and version != served.version:
            raise ServerError(
                Reason.VERSION_MISMATCH,
                f"weights_version: is {version}: of {name!r} version {served.version} is served",
                field="weights_version",
            )
        return served

    def resumed(self, name: str, fingerprint: bytes) -> ServedWeights:
        """Returns the weights of a model with this fingerprint, which are served or were and are in use.

        Raises MODEL_NOT_FOUND, MODEL_BROKEN or WEIGHTS_GONE.
        """
        served = self._served.get(name)
        if served is not None and served.fingerprint == fingerprint:
            return served
        for weights in self._users:
            if weights.model == name and weights.fingerprint == fingerprint:
                return weights
        version = self.current(name).version
        raise ServerError(
            Reason.WEIGHTS_GONE,
            f"the weights of the stream are gone: {name!r} has others now, version {version}",
            field="fingerprint",
        )

    def hold(self, weights: ServedWeights) -> None:
        """Keeps a version alive for one more open sequence."""
        self._users[weights] = self._users.get(weights, 0) + 1

    def release(self, weights: Weights) -> None:
        """Undoes one hold()."""
        assert isinstance(weights, ServedWeights)
        self._users[weights] -= 1
        if not self._users[weights]:
            del self._users[weights]
            self._notify_if_gone(weights.model)

    def keep(self, weights: Weights) -> None:
        """Keeps a version alive for a minute: a stream that was lost with its connection may come again for it."""
        assert isinstance(weights, ServedWeights)
        timer = self._kept.pop(weights, None)
        if timer is None:
            self.hold(weights)
        else:
            timer.cancel()
        self._kept[weights] = asyncio.get_running_loop().call_later(_KEPT_SECONDS, self._let_go, weights)

    def _let_go(self, weights: ServedWeights) -> None:
        self._kept.pop(weights).cancel()
        self.release(weights)

    def alive(self) -> set[ServedWeights]:
        """Returns every version that is served or used by an open sequence. Safe from any thread."""
        return {*self._served.values(), *self._users}

    def device_bytes(self) -> int:
        """Returns the bytes of weights and states on the device."""
        return sum(weights.nbytes for weights in self.alive())

    def models(self) -> list[ModelInfo]:
        """Returns the served models, by name."""
        return [self.get(name) for name in sorted(self._served)]

    def get(self, name: str) -> ModelInfo:
        """Returns the description of a served model. Raises MODEL_NOT_FOUND or MODEL_BROKEN."""
        served = self.current(name)
        spec = served.network.spec
        return ModelInfo(name, spec, served.version, spec.parameter_count)

    @property
    def broken(self) -> dict[str, str]:
        """By name, why each broken model cannot be loaded; none of them is served."""
        return dict(self._broken)

    async def load_all(self, *, strict: bool = False) -> None:
        """Serves every model folder in the root; those that cannot be loaded are logged and listed as broken.

        strict: raise MODEL_BROKEN at the first broken one. Raises STORAGE_FAILED if the root cannot be read.
        """
        for name in await in_worker_thread("models", self._folders.find):
            try:
                await self.load(name)
            except Exception as error:
                if isinstance(error, ServerError) and error.reason is Reason.MODEL_NOT_FOUND:
                    continue  # removed meanwhile, or never completed
                why = self._broken[name] = why_broken(name, error)
                if strict:
                    raise ServerError(Reason.MODEL_BROKEN, f"{name}: {why}") from error
                log.error("model %s cannot be loaded and is not served: %s", name, why)

    async def load(self, name: str) -> ModelInfo:
        """Loads a model's folder and serves it; the weights of a served model get a higher version.

        Raises MODEL_NOT_FOUND, MODEL_BROKEN, OVER_LIMIT, STORAGE_FAILED, or OVERLOADED if too many versions are in use
        or memory runs out.
        """
        return await self._run_change(self._load, check_name(name))

    async def create(self, name: str, spec: ModelSpec, seed: int) -> ModelInfo:
        """Creates a model with random weights from the seed, writes its folder and serves it.

        Raises MODEL_EXISTS, OVER_LIMIT, STORAGE_FAILED, or OVERLOADED if memory runs out or another process holds the
        folders' lock for too long.
        """
        self._check_size(spec)
        return await self._run_change(self._create, check_name(name), spec, seed)

    async def import_(self, name: str, config: bytes, weights: bytes, *, new: bool = False) -> ModelInfo:
        """Checks the two files of a model folder, writes and serves them; a served model gets its next version.

        new: the model must not exist. Raises MODEL_BROKEN, MODEL_EXISTS if the served model has another specification,
        OVER_LIMIT, STORAGE_FAILED, or OVERLOADED.
        """
        return await self._run_change(self._import, check_name(name), config, weights, new)

    async def publish(self, name: str, network: Network) -> ModelInfo:
        """Replaces the weights of a served model by its next version; open sessions keep their version.

        Raises MODEL_NOT_FOUND, MODEL_EXISTS if the served model has another specification, STORAGE_FAILED, or
        OVERLOADED if too many versions are in use.
        """
        return await self._run_change(self._publish, name, network)

    async def _publish(self, name: str, network: Network) -> ModelInfo:
        served = self.current(name)
        self.check_live_versions(name)
        self._check_same_spec(served, network)
        return await self._serve(name, self._next_version(name), network, save=True)

    async def _load(self, name: str) -> ModelInfo:
        try:
            return await self._read_and_serve(name)
        except ServerError as error:
            if error.reason is Reason.MODEL_NOT_FOUND:
                self._broken.pop(name, None)
            elif name in self._broken or (error.reason is Reason.MODEL_BROKEN and name not in self._served):
                self._broken[name] = why_broken(name, error)
            raise

    async def _read_and_serve(self, name: str) -> ModelInfo:
        self.check_live_versions(name)
        network, version = await in_worker_thread("models", self._folders.read, name, self._device, self._check_size)
        last = self._last.get(name, 0)
        if version < last or (version == last and name in self._served):
            return await self._serve(name, self._next_version(name), network, save=True)
        return await self._serve(name, version, network, save=False)

    async def _create(self, name: str, spec: ModelSpec, seed: int) -> ModelInfo:
        self._check_free(name)
        version = self._next_version(name)
        network = await in_worker_thread("models", Network.create, spec, seed, self._device)
        return await self._serve(name, version, network, save=True, new=True)

    async def _import(self, name: str, config: bytes, weights: bytes, new: bool) -> ModelInfo:
        self.check_live_versions(name)
        network, version = await in_worker_thread(
            "models", model_folder.load_bytes, config, weights, self._device, self._check_size
        )
        served = self._served.get(name)
        if served is not None:
            self._check_same_spec(served, network)
        if name in self._last:
            version = self._next_version(name)
        return await self._serve(name, version, network, save=True, new=new)

    async def unload(self, name: str) -> None:
        """Stops serving a model, or listing it as broken. Open sequences keep their weights; the folder stays.

        Raises MODEL_NOT_FOUND.
        """
        async with self._changing:
            if self._broken.pop(name, None) is not None:
                return
            self.current(name)
            del self._served[name]
            for watcher in self.watchers:
                watcher.unloaded(name)
            self._notify_if_gone(name)

    async def export(self, name: str) -> tuple[bytes, bytes]:
        """Returns the served model's config.json and model.safetensors. Raises MODEL_NOT_FOUND or MODEL_BROKEN."""
        served = self.current(name)
        return await in_worker_thread("models", model_folder.to_bytes, served.network, served.version)

    def _check_size(self, spec: ModelSpec) -> None:
        size = model_folder.weights_bytes(spec)
        if size > self._max_model_bytes:
            raise ServerError(
                Reason.OVER_LIMIT, f"the model has {size} bytes of weights: expected at most {self._max_model_bytes}"
            )

    def _check_free(self, name: str) -> None:
        if name in self._served or self._folders.has(name):
            why = f", and cannot be loaded: {self._broken[name]}" if name in self._broken else ""
            raise ServerError(Reason.MODEL_EXISTS, f"a model {name!r} exists already{why}", field="name")

    @staticmethod
    def _check_same_spec(served: ServedWeights, network: Network) -> None:
        if served.network.spec != network.spec:
            raise ServerError(
                Reason.MODEL_EXISTS,
                f"a model {served.model!r} of another specification is served: unload it first",
                field="name",
            )

    def _next_version(self, name: str) -> int:
        version = self._last.get(name, 0) + 1
        if version > model_folder.MAX_VERSION:
            raise ServerError(Reason.OVER_LIMIT, f"{name!r} has reached version {version - 1}, the highest possible")
        return version

    async def _run_change(
        self, change: Callable[P, Coroutine[None, None, ModelInfo]], *arguments: P.args, **keywords: P.kwargs
    ) -> ModelInfo:
        """Runs a change under the lock, as a task: its worker thread goes on if the caller is cancelled, and must not
        run beside another change, nor leave a folder that is not served."""
        await self._changing.acquire()
        self._change = asyncio.create_task(change(*arguments, **keywords))
        self._change.add_done_callback(self._changed)
        return await asyncio.shield(self._change)

    def _changed(self, change: "asyncio.Task[ModelInfo]") -> None:
        self._changing.release()
        if not change.cancelled():
            change.exception()  # else it is logged as never retrieved where the caller had gone

    def check_live_versions(self, name: str) -> None:
        """Raises OVERLOADED if another version would exceed both the number and the bytes of versions in use."""

        def full() -> bool:
            sizes = [weights.nbytes for weights in self._users if weights.model == name]
            return len(sizes) >= self._max_live_versions and sum(sizes) + min(sizes) > self._max_live_bytes

        kept = [weights for weights in self._kept if weights.model == name and self._users[weights] == 1]
        while kept and full():  # they go before those of open sessions
            self._let_go(kept.pop(0))
        if full():
            in_use = sum(1 for weights in self._users if weights.model == name)
            raise overloaded(
                f"version limit reached: {in_use} versions of {name!r} are in use by open sessions",
                ONE_SECOND,
                Overload.MODELS,
            )

    async def _serve(self, name: str, version: int, network: Network, *, save: bool, new: bool = False) -> ModelInfo:
        """Serves a network. Whatever may fail is done before the folder, and then the served weights, are replaced."""
        served = await in_worker_thread("models", ServedWeights, name, version, network)
        await in_worker_thread("models", warm_up, served, self._threads)
        self.check_live_versions(name)  # sessions may have been opened meanwhile
        if save:
            await in_worker_thread(
                "models", self._folders.save, name, network, version, self._check_free if new else None
            )
        self._served[name] = served
        self._broken.pop(name, None)
        self._last[name] = version
        for watcher in self.watchers:
            watcher.serving(name, version)
        return self.get(name)

    def _notify_if_gone(self, name: str) -> None:
        if name not in self._served and not any(weights.model == name for weights in self._users):
            for watcher in self.watchers:
                watcher.gone(name)
