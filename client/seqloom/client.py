"""The asynchronous client, from which the blocking one is generated (tools/generate_blocking.py)."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from seqloom import convert, inference, model_files
from seqloom.config import Config
from seqloom.errors import Cancelled, InvalidArgument, NotFound, SeqloomError, from_rpc
from seqloom.link import Link
from seqloom.retries import Backoff, may_repeat, remaining
from seqloom.session import Session
from seqloom.stream import AsyncStream
from seqloom.types import TLS, InferenceResult, ModelInfo, ModelSpec, Outputs, ServerInfo, State
from seqloom.v1 import inference_service_pb2, model_service_pb2

T = TypeVar("T")


class AsyncClient:
    """A connection to one server, for any number of concurrent calls and streams of one event loop.

    address: "host:port". token: sent with every call. timeout: seconds for each call that names none, math.inf for no
    limit. retries: how often a call that is safe to repeat is repeated, with growing pauses, where the server cannot be
    reached or takes no more now. keepalive: seconds of silence after which the connection is checked, at least 10.

    It connects when it is first used. Every method raises errors of seqloom.SeqloomError, of which InvalidArgument,
    NotFound, Overloaded, Unavailable and DeadlineExceeded are the usual ones.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: TLS | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        keepalive: float = 30.0,
    ) -> None:
        self._config = Config(address, token, tls, timeout, retries, keepalive)
        self._link: Link | None = None
        self._closed = False
        self._known: dict[str, ModelInfo] = {}

    async def infer(
        self,
        model: str,
        xs: Any,
        outputs: Outputs = "logits",
        *,
        initial_state: State | None = None,
        weights_version: int | None = None,
        timeout: float | None = None,
    ) -> InferenceResult:
        """Runs N whole sequences, xs[i] of [T_i, D], each T_i at least 1; returns the outputs of each.

        outputs: "logits", "probs", "log_probs", "labels", "hidden" or TopK(k). initial_state: State of [L, N, H] to
        continue from; zeros where None. weights_version: demands these weights, else VersionMismatch is raised.
        """
        deadline = self._config.deadline(timeout)

        async def attempt() -> InferenceResult:
            spec = (await self._info(model, deadline)).spec
            request = inference.Request.checked(model, spec, xs, outputs, initial_state, weights_version)
            return await inference.infer(self._linked().shared, request, deadline)

        xs = list(xs) if isinstance(xs, Iterator) else xs  # an iterator could not be read again
        return await self._anew(convert.text(model, "model"), attempt, deadline)

    def stream(
        self,
        model: str,
        outputs: Outputs = "logits",
        *,
        initial_state: State | None = None,
        weights_version: int | None = None,
        snapshot_interval: int = 0,
        timeout: float | None = None,
    ) -> AsyncStream:
        """Returns a live stream; open it with `with`. Its hidden state stays on the server between chunks.

        outputs and weights_version as in infer; initial_state: State of [L, 1, H]. snapshot_interval: steps after
        each of which the server sends the state, stream.snapshot; 0 for never. timeout: seconds for each of its calls.
        """

        async def opener() -> tuple[Session, ModelSpec]:
            deadline = self._config.deadline(timeout)

            async def attempt() -> tuple[Session, ModelSpec]:
                info = await self._info(model, deadline)
                message = inference_service_pb2.OpenSession(
                    model=model,
                    output=convert.output_spec(outputs),
                    initial_state=convert.state(initial_state, info.spec, 1)[0],
                    weights_version=convert.version(weights_version),
                    snapshot_interval_steps=convert.interval(snapshot_interval),
                )
                session = await self._linked().shared.opened(message, (info.spec, outputs), deadline)
                try:
                    if session.weights_version != info.weights_version:  # replaced, perhaps by one of another shape
                        self._known.pop(model, None)
                        info = await self._info(model, deadline)
                except BaseException:
                    session.cancel(Cancelled("the stream was given up", reason="CANCELLED"))
                    raise
                return session, info.spec

            return await self._anew(convert.text(model, "model"), attempt, deadline)

        return AsyncStream(opener, self._config.timeout if timeout is None else timeout)

    async def models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        """Returns the models that are served, by name."""
        reply = await self._unary("ListModels", model_service_pb2.ListModelsRequest(), timeout)
        return [convert.model_info(model) for model in reply.models]

    async def model(self, name: str, *, timeout: float | None = None) -> ModelInfo:
        """Returns one model. Raises NotFound."""
        reply = await self._unary(
            "GetModel", model_service_pb2.GetModelRequest(name=convert.text(name, "name")), timeout
        )
        return convert.model_info(reply.model)

    async def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """Returns the server's version, device and limits."""
        return convert.server_info(
            await self._unary("GetServerInfo", model_service_pb2.GetServerInfoRequest(), timeout)
        )

    async def create_model(
        self, name: str, spec: ModelSpec, *, seed: int = 0, timeout: float | None = None
    ) -> ModelInfo:
        """Creates a model with weights drawn from `seed` as torch.nn draws them. Raises AlreadyExists."""
        if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
            raise InvalidArgument(f"seed: is {seed!r}: expected an integer of 64 bits")
        request = model_service_pb2.CreateModelRequest(
            name=convert.text(name, "name"), spec=convert.model_spec(spec), seed=seed
        )
        reply = await self._unary("CreateModel", request, timeout, pure=False)
        return convert.model_info(reply.model)

    async def load_model(self, name: str, *, timeout: float | None = None) -> ModelInfo:
        """Serves a model folder that lies in the server's model directory, or reads it anew. Raises NotFound."""
        request = model_service_pb2.LoadModelRequest(name=convert.text(name, "name"))
        return convert.model_info((await self._unary("LoadModel", request, timeout, pure=False)).model)

    async def unload_model(self, name: str, *, timeout: float | None = None) -> None:
        """Stops serving a model; its folder stays, and open streams live on. Raises NotFound."""
        await self._unary(
            "UnloadModel", model_service_pb2.UnloadModelRequest(name=convert.text(name, "name")), timeout, pure=False
        )
        self._known.pop(name, None)

    async def export_model(self, name: str, folder: str | os.PathLike[str], *, timeout: float | None = None) -> None:
        """Writes a served model to `folder` as config.json and model.safetensors, whose names are torch.nn's.

        Raises NotFound; InvalidArgument where the folder cannot be written.
        """
        deadline, path = self._config.deadline(timeout), model_files.path_of(folder)

        async def attempt() -> None:
            request = model_service_pb2.ExportModelRequest(name=convert.text(name, "name"))
            parts = self._linked().models.ExportModel(request, **self._options(deadline))
            await model_files.write(path, parts)

        await self._repeated(attempt, deadline, pure=True)

    async def import_model(
        self, name: str, folder: str | os.PathLike[str], *, timeout: float | None = None
    ) -> ModelInfo:
        """Serves the model in `folder`, config.json and model.safetensors, as `name`.

        A model that is served already gets the weights as its next version, if its specification is the same; else
        AlreadyExists is raised. Raises InvalidArgument where a file is missing or broken.
        """
        deadline, path = self._config.deadline(timeout), model_files.path_of(folder)

        async def attempt() -> ModelInfo:
            with model_files.Reader(convert.text(name, "name"), path) as reader:
                call = self._linked().models.ImportModel(reader.parts(), **self._options(deadline))
                return convert.model_info((await reader.answer(call)).model)

        return await self._repeated(attempt, deadline, pure=False)

    async def close(self) -> None:
        """Ends the connection; whatever is open fails with Cancelled."""
        self._closed = True
        if self._link is not None:
            await self._link.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _info(self, name: str, deadline: float) -> ModelInfo:
        """A model as it was when it was asked for last: how its frames must look."""
        info = self._known.get(name)
        if info is None:
            request = model_service_pb2.GetModelRequest(name=name)
            reply = await self._linked().models.GetModel(request, **self._options(deadline))
            info = self._known[name] = convert.model_info(reply.model)
        return info

    async def _anew(self, model: str, attempt: Callable[[], Awaitable[T]], deadline: float) -> T:
        """Runs what changes nothing; once more where it failed by a specification that is no longer the model's."""
        known = self._known.get(model)
        try:
            return await self._repeated(attempt, deadline, pure=True)
        except (InvalidArgument, NotFound):
            self._known.pop(model, None)
            if known is None:
                raise
            info = await self._repeated(lambda: self._info(model, deadline), deadline, pure=True)
            if info.spec == known.spec:
                raise
        return await self._repeated(attempt, deadline, pure=True)

    async def _unary(self, method: str, request: Any, timeout: float | None, *, pure: bool = True) -> Any:
        deadline = self._config.deadline(timeout)

        async def attempt() -> Any:
            return await getattr(self._linked().models, method)(request, **self._options(deadline))

        return await self._repeated(attempt, deadline, pure=pure)

    async def _repeated(self, attempt: Callable[[], Awaitable[T]], deadline: float, *, pure: bool) -> T:
        """Runs until it succeeds, or fails in a way that a repeat could not mend or must not risk."""
        backoff = Backoff(self._config.retries, deadline)
        while True:
            try:
                return await attempt()
            except grpc.aio.AioRpcError as failed:
                error = from_rpc(failed)
            except SeqloomError as failed:
                error = failed
            if not may_repeat(error, pure=pure):
                raise error from None
            await asyncio.sleep(backoff.delay(error))

    def _options(self, deadline: float) -> dict[str, Any]:
        return {"timeout": remaining(deadline), "metadata": self._config.metadata()}

    def _linked(self) -> Link:
        if self._closed:
            raise Cancelled("the client is closed", reason="CLIENT_CLOSED")
        if self._link is None:
            self._link = Link(self._config)
        elif self._link.loop is not asyncio.get_running_loop():
            raise InvalidArgument("the client belongs to another event loop: make one for each, or use seqloom.Client")
        return self._link
