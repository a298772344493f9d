"""ModelService: lists, creates, loads, imports and exports models, and reports the server's limits."""

import asyncio
from collections.abc import AsyncIterator

from seqloom._version import __version__
from seqloom.v1 import model_service_pb2 as pb
from seqloom.v1 import model_service_pb2_grpc

from seqloom_server.config import ServerConfig
from seqloom_server.engine.core.names import check_name
from seqloom_server.engine.core.overload import ONE_SECOND, TEN_SECONDS, model_memory_exhausted, overloaded
from seqloom_server.engine.engine import Engine
from seqloom_server.engine.models.registry import ModelInfo
from seqloom_server.errors import Overload, Reason, ServerError, invalid, over_limit
from seqloom_server.memory import is_memory_short
from seqloom_server.nn.files.model_folder import BrokenModel, max_weights_bytes, most_weights_bytes
from seqloom_server.rpc.calls.interceptors import Context, set_model
from seqloom_server.rpc.calls.request_parts import SECONDS_WITHOUT_PROGRESS, parts_of, pass_over
from seqloom_server.rpc.models.model_messages import model_message, model_spec

_PART_BYTES = 1 << 20
_MAX_EXPORTS = 2  # at once: each holds a whole model in memory


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """Serves the registry's models over gRPC."""

    def __init__(self, engine: Engine, config: ServerConfig) -> None:
        self._engine = engine
        self._registry = engine.registry
        self._config = config
        self._import_bytes = 0  # of parts received, over all running imports
        self._max_import_bytes = most_weights_bytes(config.max_model_bytes)  # so that one import always fits
        self._exports = 0

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        broken = (pb.Model(name=name, broken=why) for name, why in self._registry.broken.items())
        models: list[pb.Model] = [*map(model_message, self._registry.models()), *broken]
        models.sort(key=lambda model: model.name)
        return pb.ListModelsResponse(models=models)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        why = self._registry.broken.get(request.name)
        if why is not None:
            return pb.GetModelResponse(model=pb.Model(name=request.name, broken=why))
        info = self._registry.get(request.name)
        set_model(info.name)
        return pb.GetModelResponse(model=model_message(info))

    async def CreateModel(self, request: pb.CreateModelRequest, context: Context) -> pb.CreateModelResponse:
        info = await self._registry.create(request.name, model_spec(request.spec), request.seed)
        set_model(info.name)
        return pb.CreateModelResponse(model=model_message(info))

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        info = await self._registry.load(request.name)
        set_model(info.name)
        return pb.LoadModelResponse(model=model_message(info))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        await self._registry.unload(request.name)
        set_model(request.name)
        return pb.UnloadModelResponse()

    async def ImportModel(
        self, requests: AsyncIterator[pb.ImportModelRequest], context: Context
    ) -> pb.ImportModelResponse:
        try:
            info = await self._import(requests)
        except ServerError as error:
            await pass_over(requests, error)
            raise
        set_model(info.name)
        return pb.ImportModelResponse(model=model_message(info))

    async def _import(self, requests: AsyncIterator[pb.ImportModelRequest]) -> ModelInfo:
        parts = parts_of(requests)
        first = await anext(parts, None)
        if first is None:
            raise invalid("name", "is missing: expected a first part with the name and the configuration")
        check_name(first.name)
        try:
            most = max_weights_bytes(first.config)
        except BrokenModel as error:
            raise invalid("config", str(error)) from None
        if most > self._max_import_bytes:
            raise over_limit(
                "config", f"needs up to {most} bytes of weights: expected at most {self._max_import_bytes}"
            )
        received: list[bytes] = []
        try:
            await self._collect(received, first.weights, parts, most)
            return await self._registry.import_(first.name, first.config, b"".join(received))
        except ServerError as error:
            if error.reason is Reason.MODEL_BROKEN:  # here the files are the caller's argument
                raise invalid("weights", error.message) from None
            raise
        except Exception as error:
            if is_memory_short(error):
                raise model_memory_exhausted() from None
            raise
        finally:
            self._import_bytes -= sum(map(len, received))

    async def _collect(
        self, received: list[bytes], weights: bytes, parts: AsyncIterator[pb.ImportModelRequest], most: int
    ) -> None:
        """Appends the parts of model.safetensors to `received`, and counts their bytes.

        Raises INVALID_FIELD for more bytes than `most`; OVERLOADED if all imports together exceed the limit; and what
        parts_of() raises.
        """
        size = 0
        while True:
            size += len(weights)
            if size > most:
                raise invalid("weights", f"has more than {most} bytes: expected at most that for the configuration")
            if self._import_bytes + len(weights) > self._max_import_bytes:
                raise overloaded(
                    f"import limit reached: other imports hold {self._import_bytes - size + len(weights)} bytes",
                    TEN_SECONDS,
                    Overload.MODELS,
                )
            self._import_bytes += len(weights)
            if weights:
                received.append(weights)
            part = await anext(parts, None)
            if part is None:
                return
            if part.name or part.config:
                raise invalid("config" if part.config else "name", "is given again: expected in the first part only")
            weights = part.weights

    async def ExportModel(
        self, request: pb.ExportModelRequest, context: Context
    ) -> AsyncIterator[pb.ExportModelResponse]:
        if self._exports >= _MAX_EXPORTS:
            raise overloaded(f"export limit reached: {self._exports} exports are running", ONE_SECOND, Overload.MODELS)
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None, "a handler runs as a task"
        self._exports += 1
        try:
            config, weights = await self._registry.export(request.name)
            set_model(request.name)
            yield pb.ExportModelResponse(config=config)
            for start in range(0, len(weights), _PART_BYTES):
                # this task also writes what is yielded, and blocks while the caller does not read
                watch = loop.call_later(SECONDS_WITHOUT_PROGRESS, task.cancel)
                try:
                    yield pb.ExportModelResponse(weights=weights[start : start + _PART_BYTES])
                finally:
                    watch.cancel()
        finally:
            self._exports -= 1

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        config = self._config
        limits = {field.name: getattr(config, field.name) for field in pb.Limits.DESCRIPTOR.fields}
        return pb.GetServerInfoResponse(version=__version__, device=self._engine.device, limits=pb.Limits(**limits))
