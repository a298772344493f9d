"""The models that are served, their folders on disk, and the versions of weights that are still alive.

Everything that reads or writes files or builds networks runs in a worker thread, one change at a time; what is served
is replaced in one assignment on the event loop.
"""

import asyncio
import pathlib
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from seqloom_server.engine.runner import ServedWeights, warm_up
from seqloom_server.errors import Reason, ServerError, invalid
from seqloom_server.nn import storage
from seqloom_server.nn.network import Network
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.nn.storage import BrokenModel

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is told of a served model."""

    name: str
    spec: ModelSpec
    weights_version: int
    parameter_count: int


def check_name(name: str, field: str = "name") -> str:
    """Returns the name of a model. Raises ServerError INVALID_FIELD where it is none."""
    if not _NAME.fullmatch(name):
        raise invalid(field, f"is {name[:80]!r}: expected 1 to 64 of a-z 0-9 . _ - beginning with a letter or digit")
    return name


class Registry:
    """The served models of one folder `root`, on one device.

    max_live_versions: how many versions of a model's weights may be alive at once; open sessions keep theirs alive.
    """

    def __init__(self, root: pathlib.Path, device: str, max_live_versions: int) -> None:
        self._root = root
        self._device = device
        self._max_live_versions = max_live_versions
        self._served: dict[str, ServedWeights] = {}
        self._alive: dict[str, weakref.WeakSet[ServedWeights]] = {}
        self._changing = asyncio.Lock()
        self._on_serve: list[Callable[[str, int], object]] = []

    def current(self, name: str, version: int = 0) -> ServedWeights:
        """Returns the weights that serve `name`. Raises MODEL_NOT_FOUND; VERSION_MISMATCH if `version` is another."""
        served = self._served.get(name)
        if served is None:
            raise ServerError(Reason.MODEL_NOT_FOUND, f"no model {name[:80]!r} is served", field="model")
        if version and version != served.version:
            raise ServerError(
                Reason.VERSION_MISMATCH,
                f"weights_version {version} of {name!r} is demanded: version {served.version} is served",
                field="weights_version",
            )
        return served

    def alive(self) -> list[ServedWeights]:
        """Every version that is served or that an open session still uses."""
        return [weights for versions in self._alive.values() for weights in list(versions)]

    def on_serve(self, callback: Callable[[str, int], object]) -> None:
        """Calls back with name and version whenever weights begin to be served."""
        self._on_serve.append(callback)

    def device_bytes(self) -> int:
        """Bytes of weights and states on the device."""
        return sum(weights.network.nbytes + weights.state_bytes for weights in self.alive())

    def models(self) -> list[ModelInfo]:
        return [self.get(name) for name in sorted(self._served)]

    def get(self, name: str) -> ModelInfo:
        served = self.current(name)
        spec = served.network.spec
        return ModelInfo(name, spec, served.version, spec.parameter_count)

    async def load_all(self) -> None:
        """Serves every model folder below the root. Raises MODEL_BROKEN at the first that cannot be loaded."""
        folders = [path for path in self._root.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
        for folder in sorted(folders):
            await self.load(folder.name)

    async def load(self, name: str) -> ModelInfo:
        """Serves the folder of that name; read anew, the weights get a version above the one served."""
        folder = self._root / check_name(name)
        async with self._changing:
            if not (folder / storage.CONFIG).exists():
                raise ServerError(Reason.MODEL_NOT_FOUND, f"there is no model folder {name!r}", field="name")
            self._check_live_versions(name)
            network, version = await self._off_loop(storage.load, folder, self._device)
            served = self._served.get(name)
            if served is not None and version <= served.version:
                version = served.version + 1
                await self._off_loop(storage.save, folder, network, version)
            return await self._serve(name, version, network)

    async def create(self, name: str, spec: ModelSpec, seed: int) -> ModelInfo:
        """Draws weights from the seed, writes the folder, serves it. Raises MODEL_EXISTS."""
        folder = self._root / check_name(name)
        async with self._changing:
            if name in self._served or folder.exists():
                raise ServerError(Reason.MODEL_EXISTS, f"a model {name!r} exists already", field="name")
            network = await self._off_loop(Network.create, spec, seed, self._device)
            await self._off_loop(storage.save, folder, network, 1)
            return await self._serve(name, 1, network)

    async def import_(self, name: str, config: bytes, weights: bytes) -> ModelInfo:
        """Checks a model folder's two files, writes and serves them; a served model gets them as its next version.

        Raises MODEL_BROKEN, and MODEL_EXISTS where the served model is of another specification.
        """
        folder = self._root / check_name(name)
        async with self._changing:
            self._check_live_versions(name)
            network, version = await self._off_loop(storage.load_bytes, config, weights, self._device)
            served = self._served.get(name)
            if served is not None:
                if served.network.spec != network.spec:
                    raise ServerError(
                        Reason.MODEL_EXISTS,
                        f"a model {name!r} of another specification is served: unload it first",
                        field="name",
                    )
                version = served.version + 1
            await self._off_loop(storage.save, folder, network, version)
            return await self._serve(name, version, network)

    async def unload(self, name: str) -> None:
        """Stops serving the model; open sessions keep their weights, the folder stays."""
        async with self._changing:
            self.current(name)
            del self._served[name]

    async def export(self, name: str) -> tuple[bytes, bytes]:
        """Returns the served model's config.json and model.safetensors."""
        served = self.current(name)
        return await self._off_loop(storage.to_bytes, served.network, served.version)

    def _check_live_versions(self, name: str) -> None:
        if len(self._alive.get(name, ())) >= self._max_live_versions:
            raise ServerError(
                Reason.OVERLOADED,
                f"{self._max_live_versions} versions of {name!r} are still in use by open sessions",
                retry_after=1.0,
            )

    async def _serve(self, name: str, version: int, network: Network) -> ModelInfo:
        served = ServedWeights(name, version, network)
        await asyncio.to_thread(warm_up, served)
        self._served[name] = served
        self._alive.setdefault(name, weakref.WeakSet()).add(served)
        for callback in self._on_serve:
            callback(name, version)
        return self.get(name)

    @staticmethod
    async def _off_loop(function, *arguments):  # type: ignore[no-untyped-def]
        try:
            return await asyncio.to_thread(function, *arguments)
        except BrokenModel as error:
            raise ServerError(Reason.MODEL_BROKEN, str(error)) from error
