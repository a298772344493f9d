"""ModelService: what is served, creating, loading, moving models in and out, and the server's limits."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar

import grpc
from seqloom._version import __version__
from seqloom.v1 import model_service_pb2 as pb
from seqloom.v1 import model_service_pb2_grpc, tensor_pb2

from seqloom_server.config import ServerConfig
from seqloom_server.engine.engine import Engine
from seqloom_server.engine.registry import ModelInfo, check_name
from seqloom_server.errors import Reason, ServerError, invalid
from seqloom_server.nn.spec import Activation, Cell, DType, InvalidSpec, ModelSpec
from seqloom_server.nn.storage import BrokenModel, max_weights_bytes
from seqloom_server.rpc.interceptors import set_model

Context = grpc.aio.ServicerContext[Any, Any]

_PART_BYTES = 1 << 20
_MAX_PASSED_OVER_BYTES = 256 << 20

_CELLS: "dict[pb.CellType, Cell]" = {pb.CELL_TYPE_ELMAN: "elman", pb.CELL_TYPE_GRU: "gru", pb.CELL_TYPE_LSTM: "lstm"}
_ACTIVATIONS: "dict[pb.Activation, Activation]" = {pb.ACTIVATION_TANH: "tanh", pb.ACTIVATION_RELU: "relu"}
_DTYPES: "dict[tensor_pb2.DataType, DType]" = {
    tensor_pb2.DATA_TYPE_FLOAT32: "float32",
    tensor_pb2.DATA_TYPE_FLOAT64: "float64",
}


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """The registry's face."""

    def __init__(self, engine: Engine, config: ServerConfig) -> None:
        self._engine = engine
        self._registry = engine.registry
        self._config = config
        self._importing = asyncio.Lock()

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=map(_model, self._registry.models()))

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        info = self._registry.get(request.name)
        set_model(info.name)
        return pb.GetModelResponse(model=_model(info))

    async def CreateModel(self, request: pb.CreateModelRequest, context: Context) -> pb.CreateModelResponse:
        info = await self._registry.create(request.name, _spec(request.spec), request.seed)
        set_model(info.name)
        return pb.CreateModelResponse(model=_model(info))

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        info = await self._registry.load(request.name)
        set_model(info.name)
        return pb.LoadModelResponse(model=_model(info))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        await self._registry.unload(request.name)
        set_model(request.name)
        return pb.UnloadModelResponse()

    async def ImportModel(
        self, requests: AsyncIterator[pb.ImportModelRequest], context: Context
    ) -> pb.ImportModelResponse:
        try:
            info = await self._import(requests)
        except ServerError:
            await _pass_over(requests)
            raise
        set_model(info.name)
        return pb.ImportModelResponse(model=_model(info))

    async def _import(self, requests: AsyncIterator[pb.ImportModelRequest]) -> ModelInfo:
        first = await anext(requests, None)
        if first is None:
            raise invalid("name", "is missing: expected a first part with the name and the configuration")
        check_name(first.name)
        try:
            most = max_weights_bytes(first.config)
        except BrokenModel as error:
            raise invalid("config", str(error)) from None
        async with self._importing:  # one at a time: each is a whole model in memory
            weights = await _collect(first.weights, requests, most)
            try:
                return await self._registry.import_(first.name, first.config, weights)
            except ServerError as error:
                if error.reason is Reason.MODEL_BROKEN:  # here it is the caller's argument
                    raise invalid("weights", error.message) from None
                raise

    async def ExportModel(
        self, request: pb.ExportModelRequest, context: Context
    ) -> AsyncIterator[pb.ExportModelResponse]:
        config, weights = await self._registry.export(request.name)
        set_model(request.name)
        yield pb.ExportModelResponse(config=config)
        for start in range(0, len(weights), _PART_BYTES):
            yield pb.ExportModelResponse(weights=weights[start : start + _PART_BYTES])

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        config = self._config
        limits = {field.name: getattr(config, field.name) for field in pb.Limits.DESCRIPTOR.fields}
        return pb.GetServerInfoResponse(version=__version__, device=self._engine.device, limits=pb.Limits(**limits))


async def _pass_over(requests: AsyncIterator[pb.ImportModelRequest]) -> None:
    """Reads on, up to a bound: a caller that is cut off while it sends may never see why."""
    size = 0
    async for part in requests:
        size += len(part.weights)
        if size > _MAX_PASSED_OVER_BYTES:
            return


async def _collect(first: bytes, requests: AsyncIterator[pb.ImportModelRequest], most: int) -> bytes:
    """Joins the parts of model.safetensors. Raises INVALID_FIELD as soon as there are more bytes than `most`."""
    parts, size = [first], len(first)
    async for part in requests:
        if part.name or part.config:
            raise invalid("config" if part.config else "name", "is given again: expected in the first part only")
        size += len(part.weights)
        if size > most:
            break
        parts.append(part.weights)
    if size > most:
        raise invalid("weights", f"has more than {most} bytes, which is what the configuration can need")
    return b"".join(parts)


def _spec(message: pb.ModelSpec) -> ModelSpec:
    """Raises ServerError naming the field that no network can have."""
    cell = _CELLS.get(message.cell)
    if cell is None:
        raise invalid("spec.cell", f"is {message.cell}: expected a CellType")
    activation = _ACTIVATIONS.get(message.activation or pb.ACTIVATION_TANH)
    if activation is None:
        raise invalid("spec.activation", f"is {message.activation}: expected an Activation")
    dtype = _DTYPES.get(message.data_type or tensor_pb2.DATA_TYPE_FLOAT32)
    if dtype is None:
        raise invalid("spec.data_type", f"is {message.data_type}: expected FLOAT32 or FLOAT64")
    sizes = {name: getattr(message, name) for name in ("input_size", "hidden_size", "output_size", "num_layers")}
    try:
        return ModelSpec(cell=cell, activation=activation, dtype=dtype, **sizes)
    except InvalidSpec as error:
        raise invalid(f"spec.{error.field}", str(error).partition(": ")[2]) from None


def _model(info: ModelInfo) -> pb.Model:
    spec = info.spec
    message = pb.Model(name=info.name, weights_version=info.weights_version, parameter_count=info.parameter_count)
    message.spec.cell = _number(_CELLS, spec.cell)
    message.spec.activation = _number(_ACTIVATIONS, spec.activation)
    message.spec.data_type = _number(_DTYPES, spec.dtype)
    for name in ("input_size", "hidden_size", "output_size", "num_layers"):
        setattr(message.spec, name, getattr(spec, name))
    return message


_Number = TypeVar("_Number")


def _number(names: Mapping[_Number, str], name: str) -> _Number:
    return next(number for number, known in names.items() if known == name)
