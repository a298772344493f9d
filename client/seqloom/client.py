"""The asynchronous client, from which the blocking one is generated (tools/generate_blocking.py)."""

import os
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import TracebackType
from typing import Literal, Self, TypeVar

import numpy.typing as npt

from seqloom._config import Config
from seqloom._connection.connection import Connection
from seqloom._messages import arguments, model_parts
from seqloom._streaming import whole_sequences
from seqloom._streaming.session import Session
from seqloom._streaming.stream import AsyncStream
from seqloom._streaming.stream_budget import step_bytes
from seqloom._training import gradient_call as gradients
from seqloom._training.examples import Examples, Loss, Reduction
from seqloom._training.gradient_call import ParameterForm, WithRespectTo
from seqloom._training.optimizers import Optimizer, optimizer_message, rate
from seqloom._training.results import Gradients, RunInfo
from seqloom._training.run import AsyncRun, run_info
from seqloom.errors import Cancelled, InvalidArgument, NotFound, arrived
from seqloom.types import TLS, InferenceResult, ModelInfo, ModelSpec, Outputs, ServerInfo, State, integer
from seqloom.v1 import inference_service_pb2, model_service_pb2, training_service_pb2

T = TypeVar("T")


class AsyncClient:
    """A connection to one server, for any number of concurrent calls and streams of one event loop.

    address: "host:port", or a target as gRPC names it, such as "unix:/run/seqloom.sock". token: sent with every call.
    timeout: seconds for each call that names none, math.inf for no limit. retries: how often a call that is safe to
    repeat is repeated, with growing pauses, where the server cannot be reached or takes no more now. keepalive: seconds
    of silence after which the connection is checked, at least 10.

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
        self._connection = Connection(Config(address, token, tls, timeout, retries, keepalive))
        self._known: dict[str, ModelInfo] = {}

    async def infer(
        self,
        model: str,
        xs: Iterable[npt.ArrayLike],
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
        deadline = self._connection.config.deadline(timeout)

        async def attempt() -> InferenceResult:
            spec = (await self._info(model, deadline)).spec
            request = whole_sequences.Request.checked(model, spec, xs, outputs, initial_state, weights_version)
            return await whole_sequences.infer(self._connection.channel().shared, request, deadline)

        xs = _reusable(xs)
        return await self._anew(arguments.text(model, "model"), attempt, deadline)

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
            deadline = self._connection.config.deadline(timeout)

            async def attempt() -> tuple[Session, ModelSpec]:
                info = await self._info(model, deadline)
                message = inference_service_pb2.OpenSession(
                    model=model,
                    output=arguments.output_spec(outputs),
                    initial_state=arguments.state(initial_state, info.spec, 1)[0],
                    weights_version=arguments.version(weights_version),
                    snapshot_interval_steps=arguments.interval(snapshot_interval),
                )
                session = await self._connection.channel().shared.opened(message, (info.spec, outputs), deadline)
                try:
                    if session.weights_version != info.weights_version:  # replaced, perhaps by one of another shape
                        self._known.pop(model, None)
                        info = await self._info(model, deadline)
                except BaseException:
                    session.cancel(Cancelled("the stream was given up", reason="CANCELLED"))
                    raise
                session.step_bytes = step_bytes(info.spec, outputs)
                return session, info.spec

            return await self._anew(arguments.text(model, "model"), attempt, deadline)

        return AsyncStream(opener, self._connection.config.timeout if timeout is None else timeout)

    async def gradients(
        self,
        model: str,
        xs: Iterable[npt.ArrayLike],
        targets: Iterable[npt.ArrayLike] | None = None,
        *,
        loss: Loss = "cross_entropy",
        reduction: Reduction = "sum",
        wrt: Iterable[WithRespectTo] = ("parameters",),
        output_gradients: Iterable[npt.ArrayLike] | None = None,
        initial_state: State | None = None,
        final_state_gradient: State | None = None,
        parameter_form: ParameterForm = "smallest",
        parameter_dtype: Literal["bfloat16"] | None = None,
        weights_version: int | None = None,
        timeout: float | None = None,
    ) -> Gradients:
        """Differentiates the loss of N sequences, xs[i] of [T_i, D], under the served weights; changes nothing.

        targets: for "cross_entropy" labels [T_i], -100 for a step that does not count; for "mse" [T_i, O]; for "ctc"
        labels [L_i] from 1, 0 being the blank. Instead of them output_gradients, dL/do_t [T_i, O]: then the loss is 0.
        reduction: "sum", or "mean" over the steps that count ("ctc": over the sequences). wrt: some of "parameters",
        "inputs", "initial_state", "outputs" and "hidden". initial_state: State of [L, N, H]; final_state_gradient:
        dL/ds_T, what comes back from behind the ends; zeros where None. parameter_form: "smallest" lets parameter
        gradients travel as factors where these are smaller, "dense" never, "norms" sends only their norms;
        parameter_dtype: "bfloat16" halves them. weights_version: demands these weights, else VersionMismatch is raised.
        """
        deadline = self._connection.config.deadline(timeout)

        async def attempt() -> Gradients:
            examples = Examples.checked(
                (await self._info(model, deadline)).spec,
                xs,
                targets,
                loss=loss,
                reduction=reduction,
                output_gradients=output_gradients,
                initial_state=initial_state,
                final_state_gradient=final_state_gradient,
            )
            request = gradients.Request.checked(model, examples, wrt, parameter_form, parameter_dtype, weights_version)
            stub = self._connection.channel().training
            return await request.answer(stub.ComputeGradients(request.parts(), **self._connection.options(deadline)))

        xs, wrt = _reusable(xs), _reusable(wrt)
        targets = None if targets is None else _reusable(targets)
        output_gradients = None if output_gradients is None else _reusable(output_gradients)
        return await self._anew(arguments.text(model, "model"), attempt, deadline)

    async def create_run(
        self,
        model: str,
        *,
        optimizer: Optimizer,
        clip_norm: float | None = None,
        checkpoint_interval: int = 100,
        weights_version: int | None = None,
        replay_bytes: int = 256 << 20,
        timeout: float | None = None,
    ) -> AsyncRun:
        """Forks a model's served weights into a run that trains them on the server.

        optimizer: SGD, Adam or AdamW. clip_norm: what the norm of a step's gradient is scaled down to.
        checkpoint_interval: steps after each of which the server saves the run; 0 for never. weights_version: demands
        these weights. replay_bytes: how much is kept here to be sent again should the server die; at the bound the
        server is asked to save.
        """
        request = training_service_pb2.CreateRunRequest(
            model=arguments.text(model, "model"),
            weights_version=arguments.version(weights_version),
            optimizer=optimizer_message(optimizer),
            clip_norm=0.0 if clip_norm is None else rate(clip_norm, "clip_norm"),
            checkpoint_interval=min(integer(checkpoint_interval, "checkpoint_interval", least=0), 2**32 - 1),
            request_id=secrets.token_hex(16),
        )
        kept = integer(replay_bytes, "replay_bytes")
        return AsyncRun(
            self._connection, (await self._connection.training(lambda stub: stub.CreateRun, request, timeout)).run, kept
        )

    async def attach_run(self, id: str, *, replay_bytes: int = 256 << 20, timeout: float | None = None) -> AsyncRun:
        """Returns a run that is there already, to train it further, also beside others. Raises NotFound."""
        kept = integer(replay_bytes, "replay_bytes")
        request = training_service_pb2.GetRunRequest(run=arguments.text(id, "id"))
        return AsyncRun(
            self._connection, (await self._connection.training(lambda stub: stub.GetRun, request, timeout)).run, kept
        )

    async def runs(self, *, timeout: float | None = None) -> list[RunInfo]:
        """Returns all runs; of those that are broken only why."""
        reply = await self._connection.training(
            lambda stub: stub.ListRuns, training_service_pb2.ListRunsRequest(), timeout
        )
        return [run_info(run) for run in reply.runs]

    async def delete_run(self, id: str, *, timeout: float | None = None) -> None:
        """Ends a run and removes its checkpoints. Raises NotFound."""
        request = training_service_pb2.DeleteRunRequest(run=arguments.text(id, "id"))
        await self._connection.training(lambda stub: stub.DeleteRun, request, timeout, pure=False)

    async def models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        """Returns the models that the server has, by name; of those that are broken only why."""
        reply = await self._connection.models(
            lambda stub: stub.ListModels, model_service_pb2.ListModelsRequest(), timeout
        )
        return [arguments.model_info(model) for model in reply.models]

    async def model(self, name: str, *, timeout: float | None = None) -> ModelInfo:
        """Returns one model. Raises NotFound."""
        request = model_service_pb2.GetModelRequest(name=arguments.text(name, "name"))
        reply = await self._connection.models(lambda stub: stub.GetModel, request, timeout)
        return arguments.model_info(reply.model)

    async def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """Returns the server's version, device and limits."""
        return arguments.server_info(
            await self._connection.models(
                lambda stub: stub.GetServerInfo, model_service_pb2.GetServerInfoRequest(), timeout
            )
        )

    async def create_model(
        self, name: str, spec: ModelSpec, *, seed: int = 0, timeout: float | None = None
    ) -> ModelInfo:
        """Creates a model with weights drawn from `seed` as torch.nn draws them. Raises AlreadyExists."""
        if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
            raise InvalidArgument(f"seed: is {seed!r}: expected an integer of 64 bits")
        request = model_service_pb2.CreateModelRequest(
            name=arguments.text(name, "name"), spec=arguments.model_spec(spec), seed=seed
        )
        reply = await self._connection.models(lambda stub: stub.CreateModel, request, timeout, pure=False)
        return arguments.model_info(reply.model)

    async def load_model(self, name: str, *, timeout: float | None = None) -> ModelInfo:
        """Serves a model folder that lies in the server's model directory, or reads it anew. Raises NotFound."""
        request = model_service_pb2.LoadModelRequest(name=arguments.text(name, "name"))
        return arguments.model_info(
            (await self._connection.models(lambda stub: stub.LoadModel, request, timeout, pure=False)).model
        )

    async def unload_model(self, name: str, *, timeout: float | None = None) -> None:
        """Stops serving a model; its folder stays, and open streams live on. Raises NotFound."""
        await self._connection.models(
            lambda stub: stub.UnloadModel,
            model_service_pb2.UnloadModelRequest(name=arguments.text(name, "name")),
            timeout,
            pure=False,
        )
        self._known.pop(name, None)

    async def export_model(self, name: str, folder: str | os.PathLike[str], *, timeout: float | None = None) -> None:
        """Writes a served model to `folder` as config.json and model.safetensors, whose names are torch.nn's.

        Raises NotFound; InvalidArgument where the folder cannot be written.
        """
        deadline, path = self._connection.config.deadline(timeout), model_parts.path_of(folder)

        async def attempt() -> None:
            request = model_service_pb2.ExportModelRequest(name=arguments.text(name, "name"))
            parts = self._connection.channel().models.ExportModel(request, **self._connection.options(deadline))
            await model_parts.write(path, parts)

        await self._connection.repeated(attempt, deadline, pure=True)

    async def import_model(
        self, name: str, folder: str | os.PathLike[str], *, timeout: float | None = None
    ) -> ModelInfo:
        """Serves the model in `folder`, config.json and model.safetensors, as `name`.

        A model that is served already gets the weights as its next version, if its specification is the same; else
        AlreadyExists is raised. Raises InvalidArgument where a file is missing or broken.
        """
        deadline, path = self._connection.config.deadline(timeout), model_parts.path_of(folder)

        async def attempt() -> ModelInfo:
            with model_parts.Reader(arguments.text(name, "name"), path) as reader:
                call = self._connection.channel().models.ImportModel(
                    reader.parts(), **self._connection.options(deadline)
                )
                return arguments.model_info((await reader.answer(call)).model)

        return await self._connection.repeated(attempt, deadline, pure=False)

    async def close(self) -> None:
        """Ends the connection; whatever is open fails with Cancelled."""
        await self._connection.close()

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
            reply = await self._connection.channel().models.GetModel(request, **self._connection.options(deadline))
            info = self._known[name] = arguments.served_info(arrived(reply).model)
        return info

    async def _anew(self, model: str, attempt: Callable[[], Awaitable[T]], deadline: float) -> T:
        """Runs what changes nothing; once more where it failed by a specification that is no longer the model's."""
        known = self._known.get(model)
        try:
            return await self._connection.repeated(attempt, deadline, pure=True)
        except (InvalidArgument, NotFound):
            self._known.pop(model, None)
            if known is None:
                raise
            info = await self._connection.repeated(lambda: self._info(model, deadline), deadline, pure=True)
            if info.spec == known.spec:
                raise
        return await self._connection.repeated(attempt, deadline, pure=True)


def _reusable(values: Iterable[T]) -> Iterable[T]:
    """Returns values that every attempt of a call can read: an iterator can be read only once."""
    return list(values) if isinstance(values, Iterator) else values
