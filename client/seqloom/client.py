"""The asynchronous client. The blocking client is generated from it (tools/generate_blocking.py)."""

import os
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import TracebackType
from typing import Literal, Self, TypeVar

import numpy.typing as npt

from seqloom._config import Config
from seqloom._connection.connection import Connection
from seqloom._groups.group_opening import GroupOpening
from seqloom._groups.group_session import GroupSession
from seqloom._groups.stream_group import AsyncStreamGroup
from seqloom._messages import arguments, model_parts
from seqloom._resume.stream_opening import open_stream
from seqloom._streaming import whole_sequences
from seqloom._streaming.live_session import LiveSession
from seqloom._streaming.session import CallSession
from seqloom._streaming.stream import AsyncStream
from seqloom._streaming.stream_budget import state_bytes, step_bytes
from seqloom._training.gradient_call import GradientCall, ParameterForm, WithRespectTo
from seqloom._training.optimizers import Optimizer, optimizer_message, positive_number
from seqloom._training.results import Gradients, RunInfo
from seqloom._training.run import AsyncRun, run_info
from seqloom._training.training_examples import Loss, Reduction, TrainingExamples
from seqloom.errors import Cancelled, InvalidArgument, NotFound, checked_reply
from seqloom.types import TLS, InferenceResult, ModelInfo, ModelSpec, Outputs, ServerInfo, State, integer
from seqloom.v1 import inference_service_pb2, model_service_pb2, training_service_pb2

T = TypeVar("T")


class AsyncClient:
    """A connection to one server, for any number of concurrent calls and streams of one event loop.

    address: "host:port", or a gRPC target such as "unix:/run/seqloom.sock". token: sent with every call, and
    without `tls` only on this machine. tls: None for an unencrypted connection. timeout: seconds, the default of
    every call; math.inf for no limit. retries: how often a call that is safe to repeat is repeated, with growing
    pauses of up to 2 s, if the server is unavailable or overloaded; None for 5 times after Overloaded, and until
    its timeout while a server that has answered before is unavailable, as when it is started again. After
    Overloaded no call is repeated sooner than `retry_after`, and while a client makes n calls it repeats at most 10
    + n/10 times; beyond that Overloaded is raised at once, so that repeats do not become the load. While the server
    refuses more than a third of the calls of `infer` that demand as much as a call, it may be refused here, not
    sent and not repeated. keepalive: seconds without traffic after which the connection is checked, at least 10, and
    given up 10 s later if the server does not answer; math.inf for never.

    The client connects on the first call. Every method raises subclasses of seqloom.SeqloomError, usually
    InvalidArgument, NotFound, Overloaded, Unavailable or DeadlineExceeded.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: TLS | None = None,
        timeout: float = 60.0,
        retries: int | None = None,
        keepalive: float = 30.0,
    ) -> None:
        self._connection = Connection(Config(address, token, tls, timeout, retries, keepalive))
        self._model_infos: dict[str, ModelInfo] = {}

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
        """Runs N whole sequences, xs[i] of [T_i, D] with T_i at least 1, and returns the outputs of each.

        outputs: "logits", "probs", "log_probs", "labels", "hidden" or TopK(k). initial_state: State of [L, N, H]; None
        for zeros. weights_version: the required version of the weights; raises VersionMismatch if another is served.
        timeout: seconds; what the server does not expect to end in time is refused at once, with Overloaded.
        """
        deadline = self._connection.config.deadline(timeout)

        async def attempt() -> InferenceResult:
            spec = (await self._model_info(model, deadline)).spec
            request = whole_sequences.InferRequest.checked(model, spec, xs, outputs, initial_state, weights_version)
            return await whole_sequences.infer(self._connection.channel().shared, request, deadline)

        xs = _reusable(xs)
        return await self._retry_if_changed(arguments.text(model, "model"), attempt, deadline)

    def stream(
        self,
        model: str,
        outputs: Outputs = "logits",
        *,
        initial_state: State | None = None,
        weights_version: int | None = None,
        snapshot_interval: int = 0,
        rate: float | None = None,
        resume: bool = True,
        timeout: float | None = None,
    ) -> AsyncStream:
        """Returns a live stream, to be opened by `with`. Its hidden state stays on the server between chunks.

        outputs, weights_version: as of infer. initial_state: State of [L, 1, H]; None for zeros. snapshot_interval: the
        number of steps between two snapshots of the hidden state, stream.snapshot; 0 for none. rate: frames a second,
        above 0, of a stream in real time: it is promised that its outputs come without delay, or refused with
        Overloaded when it is opened; frames sent faster than that wait. None for a stream that takes what the others
        leave, and may wait for them. resume: whether the stream is resumed if its connection or its server is lost: the
        client keeps what was sent since a snapshot, which it asks for now and then, and sends it again. timeout:
        seconds, the default of each of the stream's calls, and of a resumption.
        """

        async def open_session() -> tuple[LiveSession, ModelSpec]:
            deadline = self._connection.config.deadline(timeout)

            async def attempt() -> tuple[LiveSession, ModelSpec]:
                info = await self._model_info(model, deadline)
                message = inference_service_pb2.OpenSession(
                    model=model,
                    output=arguments.output_spec(outputs),
                    initial_state=arguments.state(initial_state, info.spec, 1)[0],
                    weights_version=arguments.version(weights_version),
                    snapshot_interval_steps=arguments.interval(snapshot_interval),
                    steps_per_second=0.0 if rate is None else positive_number(rate, "rate"),
                )
                shared, kind = self._connection.channel().shared, (info.spec, outputs)
                session = await open_stream(shared, message, kind, deadline, seconds if resume else None)
                spec = await self._spec_of(model, info, session, deadline)
                session.set_sizes(step_bytes(spec, outputs), state_bytes(spec))
                return session, spec

            return await self._retry_if_changed(arguments.text(model, "model"), attempt, deadline)

        seconds = self._connection.config.timeout if timeout is None else timeout
        return AsyncStream(open_session, seconds)

    def stream_group(
        self,
        model: str,
        n: int,
        outputs: Outputs = "logits",
        *,
        initial_state: State | None = None,
        weights_version: int | None = None,
        snapshot_interval: int = 0,
        rate: float | None = None,
        resume: bool = True,
        timeout: float | None = None,
    ) -> AsyncStreamGroup:
        """Returns a group of n live streams that are advanced together, to be opened by `with`.

        For callers that have many streams in one process: the frames of all of them are one array, one message and one
        piece of device work. outputs, weights_version, rate (of each stream), resume, timeout: as of stream.
        initial_state: State of [L, n, H]; None for zeros. snapshot_interval: the number of steps between two snapshots
        of all hidden states, group.snapshot; 0 for none.
        """

        async def open_group() -> tuple[GroupSession, ModelSpec]:
            deadline = self._connection.config.deadline(timeout)
            opening = GroupOpening.checked(
                arguments.text(model, "model"),
                n,
                outputs,
                initial_state,
                weights_version,
                snapshot_interval,
                0.0 if rate is None else positive_number(rate, "rate"),
                seconds if resume else None,
            )

            async def attempt() -> tuple[GroupSession, ModelSpec]:
                info = await self._model_info(model, deadline)
                group = await opening.open(self._connection.channel().shared, info.spec, deadline)
                return group, await self._spec_of(model, info, group, deadline)

            return await self._retry_if_changed(model, attempt, deadline)

        seconds = self._connection.config.timeout if timeout is None else timeout
        return AsyncStreamGroup(open_group, seconds)

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
        """Computes gradients of the loss of N sequences, xs[i] of [T_i, D]. Changes no weights.

        targets: for "cross_entropy" labels [T_i], where -100 leaves a step out; for "mse" [T_i, O]; for "ctc" labels
        [L_i] of at least 1, as 0 is the blank. output_gradients: dL/do_t, [T_i, O], in place of targets; then the loss
        is 0. reduction: "sum", or "mean" over the steps that are not left out ("ctc": over the sequences). wrt: any of
        "parameters", "inputs", "initial_state", "outputs" and "hidden". initial_state: State of [L, N, H]; None for
        zeros. final_state_gradient: dL/ds_T, a State of [L, N, H]; None for zeros. parameter_form: how parameter
        gradients are sent: "smallest" as factors if these are smaller, "dense" never as factors, "norms" only their
        norms. parameter_dtype: "bfloat16" halves their size. weights_version: the required version of the weights;
        raises VersionMismatch if another is served.
        """
        deadline = self._connection.config.deadline(timeout)

        async def attempt() -> Gradients:
            examples = TrainingExamples.checked(
                (await self._model_info(model, deadline)).spec,
                xs,
                targets,
                loss=loss,
                reduction=reduction,
                output_gradients=output_gradients,
                initial_state=initial_state,
                final_state_gradient=final_state_gradient,
            )
            call = GradientCall.checked(model, examples, wrt, parameter_form, parameter_dtype, weights_version)
            stub = self._connection.channel().training
            return await call.read_response(
                stub.ComputeGradients(call.messages(), **self._connection.options(deadline))
            )

        xs, wrt = _reusable(xs), _reusable(wrt)
        targets = None if targets is None else _reusable(targets)
        output_gradients = None if output_gradients is None else _reusable(output_gradients)
        return await self._retry_if_changed(arguments.text(model, "model"), attempt, deadline)

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
        """Creates a training run on the server that starts from a model's served weights.

        optimizer: SGD, Adam or AdamW. clip_norm: the largest norm of a step's gradient, which is scaled down to it;
        None for no limit. checkpoint_interval: the number of steps between two checkpoints; 0 for none.
        weights_version: the required version of the weights; raises VersionMismatch if another is served. replay_bytes:
        the client keeps calls of at most this size, to send them again after a failure of the server; at the limit it
        asks the server to save.
        """
        request = training_service_pb2.CreateRunRequest(
            model=arguments.text(model, "model"),
            weights_version=arguments.version(weights_version),
            optimizer=optimizer_message(optimizer),
            clip_norm=0.0 if clip_norm is None else positive_number(clip_norm, "clip_norm"),
            checkpoint_interval=min(integer(checkpoint_interval, "checkpoint_interval", least=0), 2**32 - 1),
            request_id=secrets.token_hex(16),
        )
        limit = integer(replay_bytes, "replay_bytes")
        reply = await self._connection.training(lambda stub: stub.CreateRun, request, timeout)
        return AsyncRun(self._connection, reply.run, limit)

    async def attach_run(self, id: str, *, replay_bytes: int = 256 << 20, timeout: float | None = None) -> AsyncRun:
        """Returns an existing run, which other clients may train at the same time. Raises NotFound."""
        limit = integer(replay_bytes, "replay_bytes")
        request = training_service_pb2.GetRunRequest(run=arguments.text(id, "id"))
        reply = await self._connection.training(lambda stub: stub.GetRun, request, timeout)
        return AsyncRun(self._connection, reply.run, limit)

    async def runs(self, *, timeout: float | None = None) -> list[RunInfo]:
        """Returns all runs, including those that cannot be loaded."""
        reply = await self._connection.training(
            lambda stub: stub.ListRuns, training_service_pb2.ListRunsRequest(), timeout
        )
        return [run_info(run) for run in reply.runs]

    async def delete_run(self, id: str, *, timeout: float | None = None) -> None:
        """Deletes a run and its checkpoints. Raises NotFound."""
        request = training_service_pb2.DeleteRunRequest(run=arguments.text(id, "id"))
        await self._connection.training(lambda stub: stub.DeleteRun, request, timeout, read_only=False)

    async def models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        """Returns all models, sorted by name, including those that cannot be loaded."""
        reply = await self._connection.models(
            lambda stub: stub.ListModels, model_service_pb2.ListModelsRequest(), timeout
        )
        return [arguments.model_info(model) for model in reply.models]

    async def model(self, name: str, *, timeout: float | None = None) -> ModelInfo:
        """Returns the description of a model. Raises NotFound."""
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
        """Creates a model with random weights, drawn from `seed` as torch.nn does. Raises AlreadyExists."""
        if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
            raise InvalidArgument(f"seed: is {seed!r}: expected a signed integer of 64 bits")
        request = model_service_pb2.CreateModelRequest(
            name=arguments.text(name, "name"), spec=arguments.model_spec(spec), seed=seed
        )
        reply = await self._connection.models(lambda stub: stub.CreateModel, request, timeout, read_only=False)
        return arguments.model_info(reply.model)

    async def load_model(self, name: str, *, timeout: float | None = None) -> ModelInfo:
        """Loads a model, or loads it again, from its folder in the server's model directory. Raises NotFound."""
        request = model_service_pb2.LoadModelRequest(name=arguments.text(name, "name"))
        return arguments.model_info(
            (await self._connection.models(lambda stub: stub.LoadModel, request, timeout, read_only=False)).model
        )

    async def unload_model(self, name: str, *, timeout: float | None = None) -> None:
        """Stops serving a model. Its folder is kept, and open streams continue. Raises NotFound."""
        await self._connection.models(
            lambda stub: stub.UnloadModel,
            model_service_pb2.UnloadModelRequest(name=arguments.text(name, "name")),
            timeout,
            read_only=False,
        )
        self._model_infos.pop(name, None)

    async def export_model(self, name: str, folder: str | os.PathLike[str], *, timeout: float | None = None) -> None:
        """Writes a model to `folder` as config.json and model.safetensors, with the parameter names of torch.nn.

        Raises NotFound; InvalidArgument if the folder cannot be written.
        """
        deadline, path = self._connection.config.deadline(timeout), model_parts.folder_path(folder)

        async def attempt() -> None:
            request = model_service_pb2.ExportModelRequest(name=arguments.text(name, "name"))
            parts = self._connection.channel().models.ExportModel(request, **self._connection.options(deadline))
            await model_parts.write(path, parts)

        await self._connection.repeated(attempt, deadline, read_only=True)

    async def import_model(
        self, name: str, folder: str | os.PathLike[str], *, timeout: float | None = None
    ) -> ModelInfo:
        """Creates or updates the model `name` from config.json and model.safetensors in `folder`.

        If the model exists, the weights become its next version. Raises AlreadyExists if its specification differs;
        InvalidArgument if a file is missing or invalid.
        """
        deadline, path = self._connection.config.deadline(timeout), model_parts.folder_path(folder)

        async def attempt() -> ModelInfo:
            with model_parts.FolderReader(arguments.text(name, "name"), path) as reader:
                call = self._connection.channel().models.ImportModel(
                    reader.messages(), **self._connection.options(deadline)
                )
                return arguments.model_info((await reader.response(call)).model)

        return await self._connection.repeated(attempt, deadline, read_only=False)

    async def close(self) -> None:
        """Closes the connection. Open calls, streams and runs fail with Cancelled."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _model_info(self, name: str, deadline: float) -> ModelInfo:
        """Returns a model's description, from the cache if it is there: it is needed to check frames."""
        info = self._model_infos.get(name)
        if info is None:
            request = model_service_pb2.GetModelRequest(name=name)
            reply = await self._connection.channel().models.GetModel(request, **self._connection.options(deadline))
            info = self._model_infos[name] = arguments.served_info(checked_reply(reply).model)
        return info

    async def _spec_of(self, model: str, info: ModelInfo, session: CallSession, deadline: float) -> ModelSpec:
        """Returns the specification of the weights that an opened session has; cancels it if that cannot be told."""
        if session.weights_version == info.weights_version:
            return info.spec
        try:  # they were replaced, perhaps by a model of other sizes
            self._model_infos.pop(model, None)
            return (await self._model_info(model, deadline)).spec
        except BaseException:
            session.cancel(Cancelled("opening the stream was cancelled", reason="CANCELLED"))
            raise

    async def _retry_if_changed(self, model: str, attempt: Callable[[], Awaitable[T]], deadline: float) -> T:
        """Runs a read-only call; repeats it once if it failed because the cached description was out of date."""
        known = self._model_infos.get(model)
        try:
            return await self._connection.repeated(attempt, deadline, read_only=True)
        except (InvalidArgument, NotFound):
            self._model_infos.pop(model, None)
            if known is None:
                raise
            info = await self._connection.repeated(lambda: self._model_info(model, deadline), deadline, read_only=True)
            if info.spec == known.spec:
                raise
        return await self._connection.repeated(attempt, deadline, read_only=True)


def _reusable(values: Iterable[T]) -> Iterable[T]:
    """Returns values that every attempt of a call can read: an iterator can be read only once."""
    return list(values) if isinstance(values, Iterator) else values
