"""The models that are served, their folders on disk, and the versions of weights that are still alive.

Everything that reads or writes files or builds networks runs in a worker thread, one change at a time, to its end even
where its caller goes away; what is served is replaced in one assignment on the event loop. Other servers may read the
folders as they like; while one of them is changed, its server has the lock of all.
"""

import asyncio
import logging
import pathlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol

from seqloom_server.engine.core.broken_folder import why_broken
from seqloom_server.engine.core.names import check_name
from seqloom_server.engine.core.overload import ONE_SECOND, overloaded
from seqloom_server.engine.core.sequence import Weights
from seqloom_server.engine.core.worker_thread import in_worker_thread
from seqloom_server.engine.models.model_folders import ModelFolders
from seqloom_server.engine.models.served_weights import ServedWeights, warm_up
from seqloom_server.errors import Reason, ServerError
from seqloom_server.nn.files import model_folder
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.spec import ModelSpec

P = ParamSpec("P")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is told of a served model."""

    name: str
    spec: ModelSpec
    weights_version: int
    parameter_count: int


class Watcher(Protocol):
    """Hears on the event loop which models are served; gone: nor does any open sequence use the model any more."""

    def serving(self, name: str, version: int) -> None: ...

    def unloaded(self, name: str) -> None: ...

    def gone(self, name: str) -> None: ...


class Registry:
    """The served models of one folder `root`, on one device.

    max_live_versions: how many versions of a model's weights may be alive at once; open sequences keep theirs alive.
    max_model_bytes: how large the weights of one model may be. watchers: who is told of changes.
    """

    def __init__(self, root: pathlib.Path, device: str, max_live_versions: int, max_model_bytes: int = 2 << 30) -> None:
        self._folders = ModelFolders(root)
        self._device = device
        self._max_live_versions = max_live_versions
        self._max_model_bytes = max_model_bytes
        self._served: dict[str, ServedWeights] = {}
        self._users: dict[ServedWeights, int] = {}  # open sequences of each version that has any
        self._broken: dict[str, str] = {}  # of those that are not served
        self._last: dict[str, int] = {}  # the highest version that each name has had here
        self._changing = asyncio.Lock()
        self._change: asyncio.Task[Any] | None = None  # the one that has the lock
        self.watchers: list[Watcher] = []

    def current(self, name: str, version: int = 0) -> ServedWeights:
        """Returns the weights that serve `name`.

        Raises MODEL_NOT_FOUND; MODEL_BROKEN; VERSION_MISMATCH if `version` is another.
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
                f"weights_version {version} of {name!r} is demanded: version {served.version} is served",
                field="weights_version",
            )
        return served

    def hold(self, weights: ServedWeights) -> None:
        """Keeps a version alive for one more open sequence."""
        self._users[weights] = self._users.get(weights, 0) + 1

    def release(self, weights: Weights) -> None:
        """Ends what one hold() began."""
        assert isinstance(weights, ServedWeights)
        self._users[weights] -= 1
        if not self._users[weights]:
            del self._users[weights]
            self._tell_if_gone(weights.model)

    def alive(self) -> set[ServedWeights]:
        """Every version that is served or that an open sequence still uses. Safe from any thread."""
        return {*self._served.values(), *self._users}

    def device_bytes(self) -> int:
        """Bytes of weights and states on the device."""
        return sum(weights.nbytes for weights in self.alive())

    def models(self) -> list[ModelInfo]:
        """The served models, by name."""
        return [self.get(name) for name in sorted(self._served)]

    def get(self, name: str) -> ModelInfo:
        """Returns what is told of a served model. Raises MODEL_NOT_FOUND or MODEL_BROKEN."""
        served = self.current(name)
        spec = served.network.spec
        return ModelInfo(name, spec, served.version, spec.parameter_count)

    @property
    def broken(self) -> dict[str, str]:
        """Why by name for each model whose folder cannot be loaded; none of them is served."""
        return dict(self._broken)

    async def load_all(self, *, strict: bool = False) -> None:
        """Serves every model folder below the root; what is wrong with one of them is told of that one.

        strict: raises MODEL_BROKEN at the first that cannot be loaded. Raises STORAGE_FAILED where the root cannot be
        read.
        """
        for name in await in_worker_thread("models", self._folders.find):
            try:
                await self.load(name)
            except Exception as error:
                if isinstance(error, ServerError) and error.reason is Reason.MODEL_NOT_FOUND:
                    continue  # removed meanwhile, or never finished
                why = self._broken[name] = why_broken(name, error)
                if strict:
                    raise ServerError(Reason.MODEL_BROKEN, f"{name}: {why}") from error
                log.error("model %s cannot be loaded, and is left alone: %s", name, why)

    async def load(self, name: str) -> ModelInfo:
        """Serves the folder of that name; read anew, the weights get a version above the one served.

        Raises MODEL_NOT_FOUND, MODEL_BROKEN, OVER_LIMIT, STORAGE_FAILED, or OVERLOADED where too many versions are in
        use or there is no memory.
        """
        return await self._run_change(self._load, check_name(name))

    async def create(self, name: str, spec: ModelSpec, seed: int) -> ModelInfo:
        """Draws weights from the seed, writes the folder, serves it.

        Raises MODEL_EXISTS, OVER_LIMIT, STORAGE_FAILED, or OVERLOADED where there is no memory or another process
        changes models for too long.
        """
        self._check_size(spec)
        return await self._run_change(self._create, check_name(name), spec, seed)

    async def import_(self, name: str, config: bytes, weights: bytes, *, new: bool = False) -> ModelInfo:
        """Checks a model folder's two files, writes and serves them; a known model gets them as its next version.

        new: there must be no such model yet. Raises MODEL_BROKEN, MODEL_EXISTS where the served model is of another
        specification, OVER_LIMIT, STORAGE_FAILED, or OVERLOADED.
        """
        return await self._run_change(self._import, check_name(name), config, weights, new)

    async def publish(self, name: str, network: Network) -> ModelInfo:
        """Serves other weights of a served model, as its next version; sessions that are open keep theirs.

        Raises MODEL_NOT_FOUND, MODEL_EXISTS where the served model is of another specification, STORAGE_FAILED, or
        OVERLOADED where too many versions are in use.
        """
        return await self._run_change(self._publish, name, network)

    async def _publish(self, name: str, network: Network) -> ModelInfo:
        served = self.current(name)
        self.check_live_versions(name)
        self._check_same_spec(served, network)
        return await self._serve(name, self._next_version(name), network, save=True)

    async def _load(self, name: str) -> ModelInfo:
        try:
            return await self._load_anew(name)
        except ServerError as error:
            if error.reason is Reason.MODEL_NOT_FOUND:
                self._broken.pop(name, None)
            elif name in self._broken or (error.reason is Reason.MODEL_BROKEN and name not in self._served):
                self._broken[name] = why_broken(name, error)
            raise

    async def _load_anew(self, name: str) -> ModelInfo:
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
        """Stops serving the model, or telling of it as broken; open sequences keep their weights, the folder stays.

        Raises MODEL_NOT_FOUND.
        """
        async with self._changing:
            if self._broken.pop(name, None) is not None:
                return
            self.current(name)
            del self._served[name]
            for watcher in self.watchers:
                watcher.unloaded(name)
            self._tell_if_gone(name)

    async def export(self, name: str) -> tuple[bytes, bytes]:
        """Returns the served model's config.json and model.safetensors. Raises MODEL_NOT_FOUND or MODEL_BROKEN."""
        served = self.current(name)
        return await in_worker_thread("models", model_folder.to_bytes, served.network, served.version)

    def _check_size(self, spec: ModelSpec) -> None:
        size = model_folder.weights_bytes(spec)
        if size > self._max_model_bytes:
            raise ServerError(
                Reason.OVER_LIMIT, f"the model has {size} bytes of weights: at most {self._max_model_bytes} are taken"
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
            raise ServerError(Reason.OVER_LIMIT, f"{name!r} has had version {version - 1}: there is none after it")
        return version

    async def _run_change(
        self, change: Callable[P, Coroutine[Any, Any, ModelInfo]], *arguments: P.args, **keywords: P.kwargs
    ) -> ModelInfo:
        """Runs a change under the lock, as a task of its own: the worker thread goes on when a caller is cancelled, and
        must neither meet another nor leave a folder that is not served."""
        await self._changing.acquire()
        self._change = asyncio.create_task(change(*arguments, **keywords))
        self._change.add_done_callback(lambda _: self._changing.release())
        return await asyncio.shield(self._change)

    def check_live_versions(self, name: str) -> None:
        """Raises OVERLOADED where no further version of the model may be alive now."""
        in_use = sum(1 for weights in self._users if weights.model == name)
        if in_use >= self._max_live_versions:
            raise overloaded(
                f"{in_use} versions of {name!r} are in use by open sessions: no more may be alive", ONE_SECOND
            )

    async def _serve(self, name: str, version: int, network: Network, *, save: bool, new: bool = False) -> ModelInfo:
        """Everything that may fail comes before the folder is replaced, and that before the weights in use are."""
        served = await in_worker_thread("models", ServedWeights, name, version, network)
        await in_worker_thread("models", warm_up, served)
        self.check_live_versions(name)  # sessions came meanwhile
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

    def _tell_if_gone(self, name: str) -> None:
        if name not in self._served and not any(weights.model == name for weights in self._users):
            for watcher in self.watchers:
                watcher.gone(name)
