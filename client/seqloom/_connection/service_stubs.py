"""The types of the model and training services' calls on an asyncio channel, which gRPC's generated stubs lack."""

from __future__ import annotations  # older versions of grpcio have no generic types

from collections.abc import Callable
from typing import Protocol, TypeAlias, TypedDict, TypeVar

from grpc.aio import (
    StreamStreamMultiCallable,
    StreamUnaryMultiCallable,
    UnaryStreamMultiCallable,
    UnaryUnaryMultiCallable,
)

from seqloom.v1 import model_service_pb2 as models
from seqloom.v1 import training_service_pb2 as training

Stub = TypeVar("Stub")
Request = TypeVar("Request")
Response = TypeVar("Response")

UnaryMethod: TypeAlias = Callable[[Stub], UnaryUnaryMultiCallable[Request, Response]]
"""Selects a method of a stub that takes one message and returns one."""


class CallOptions(TypedDict, total=False):
    """The keyword arguments of every call. timeout: in seconds, None for no limit. metadata: of the authorization."""

    timeout: float | None
    metadata: tuple[tuple[str, str], ...]


class ModelStub(Protocol):
    """The methods of ModelService that the SDK calls."""

    ListModels: UnaryUnaryMultiCallable[models.ListModelsRequest, models.ListModelsResponse]
    GetModel: UnaryUnaryMultiCallable[models.GetModelRequest, models.GetModelResponse]
    GetServerInfo: UnaryUnaryMultiCallable[models.GetServerInfoRequest, models.GetServerInfoResponse]
    CreateModel: UnaryUnaryMultiCallable[models.CreateModelRequest, models.CreateModelResponse]
    LoadModel: UnaryUnaryMultiCallable[models.LoadModelRequest, models.LoadModelResponse]
    UnloadModel: UnaryUnaryMultiCallable[models.UnloadModelRequest, models.UnloadModelResponse]
    ExportModel: UnaryStreamMultiCallable[models.ExportModelRequest, models.ExportModelResponse]
    ImportModel: StreamUnaryMultiCallable[models.ImportModelRequest, models.ImportModelResponse]


class TrainingStub(Protocol):
    """The methods of TrainingService that the SDK calls."""

    ComputeGradients: StreamStreamMultiCallable[training.ComputeGradientsRequest, training.ComputeGradientsResponse]
    CreateRun: UnaryUnaryMultiCallable[training.CreateRunRequest, training.CreateRunResponse]
    GetRun: UnaryUnaryMultiCallable[training.GetRunRequest, training.GetRunResponse]
    ListRuns: UnaryUnaryMultiCallable[training.ListRunsRequest, training.ListRunsResponse]
    DeleteRun: UnaryUnaryMultiCallable[training.DeleteRunRequest, training.DeleteRunResponse]
    ForwardBackward: StreamUnaryMultiCallable[training.ForwardBackwardRequest, training.ForwardBackwardResponse]
    OptimStep: UnaryUnaryMultiCallable[training.OptimStepRequest, training.OptimStepResponse]
    SaveCheckpoint: UnaryUnaryMultiCallable[training.SaveCheckpointRequest, training.SaveCheckpointResponse]
    LoadCheckpoint: UnaryUnaryMultiCallable[training.LoadCheckpointRequest, training.LoadCheckpointResponse]
    PublishRun: UnaryUnaryMultiCallable[training.PublishRunRequest, training.PublishRunResponse]
