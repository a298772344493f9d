"""TrainingService: gradients for the caller, and runs that train on the server."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from seqloom.v1 import tensor_pb2, training_service_pb2_grpc
from seqloom.v1 import training_service_pb2 as pb

from seqloom_server.config import ServerConfig
from seqloom_server.engine.core.training_job import TrainingCall
from seqloom_server.engine.engine import Engine
from seqloom_server.engine.training.batch_programs import max_cells
from seqloom_server.engine.training.checkpoint_files import check_checkpoint_name
from seqloom_server.engine.training.numbered_calls import CallId
from seqloom_server.engine.training.training_run import TrainingRun
from seqloom_server.errors import Overload, ServerError, invalid
from seqloom_server.nn.losses.training_example import Example, GradientRequest, ParameterForm
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc.calls.byte_budget import ByteBudget
from seqloom_server.rpc.calls.callers import caller_of
from seqloom_server.rpc.calls.interceptors import set_model
from seqloom_server.rpc.training import gradient_response, received_examples, run_messages

Context = grpc.aio.ServicerContext[Any, Any]

_FORMS: dict[int, ParameterForm] = {
    pb.PARAMETER_FORM_UNSPECIFIED: "smallest",
    pb.PARAMETER_FORM_SMALLEST: "smallest",
    pb.PARAMETER_FORM_DENSE: "dense",
    pb.PARAMETER_FORM_NORMS: "norms",
}
_LARGE_BYTES = 1 << 20  # checking every number of so many would hold up the event loop
_MAX_CALLS = 1 << 12  # clients that a repeated step may name


class TrainingServicer(training_service_pb2_grpc.TrainingServiceServicer):
    """Decodes and checks, hands to the engine, encodes. outputs: the budget that unread gradients are charged to."""

    def __init__(self, engine: Engine, config: ServerConfig, outputs: ByteBudget) -> None:
        self._engine = engine
        self._runs = engine.runs
        self._config = config
        self._outputs = outputs
        self._incoming = ByteBudget(
            config.max_queue_bytes, "training calls are on their way", cause=Overload.QUEUE_FULL
        )

    async def ComputeGradients(
        self, requests: AsyncIterator[pb.ComputeGradientsRequest], context: Context
    ) -> AsyncIterator[pb.ComputeGradientsResponse]:
        caller = caller_of(context)
        received = await received_examples.receive(requests, self._config.max_training_bytes, self._incoming, caller)
        charged = 0
        try:
            head: pb.ComputeGradientsRequest = received.first
            weights = self._engine.registry.current(head.model, head.weights_version)
            set_model(weights.model)
            spec = weights.network.spec
            request, bfloat16 = _gradient_request(head), _bfloat16(head)
            examples = await self._decode(received, spec)
            steps = sum(len(example.xs) for example in examples)
            size = gradient_response.predicted_bytes(spec, request, len(examples), steps)
            self._outputs.take(size, caller)
            charged = size  # only once it was taken: a refusal gives nothing back
            remaining = context.time_remaining()
            job = TrainingCall(
                weights,
                asyncio.get_running_loop().create_future(),
                deadline=None if remaining is None else time.monotonic() + remaining,
                caller=caller,
                examples=examples,
                request=request,
                steps=steps,
                nbytes=received.nbytes,
            )
            self._engine.registry.hold(weights)
            try:
                self._engine.train(job)
                gradients = await job.outcome
            finally:
                self._engine.jobs.abandon([job])
                self._engine.registry.release(weights)
            reply = gradient_response.GradientResponse(spec, gradients, weights.version, bfloat16=bfloat16)
            reply.summary.timing.queue_seconds = job.queue_seconds
            reply.summary.timing.compute_seconds = job.compute_seconds
            for part in reply.parts(self._config.max_stream_message_bytes):
                yield part
        finally:
            self._incoming.give(received.nbytes, caller)
            self._outputs.give(charged, caller)

    async def CreateRun(self, request: pb.CreateRunRequest, context: Context) -> pb.CreateRunResponse:
        served = self._engine.registry.current(request.model, request.weights_version)
        set_model(served.model)
        clip_norm = request.clip_norm
        if not (math.isfinite(clip_norm) and clip_norm >= 0):
            raise invalid("clip_norm", f"is {clip_norm}: expected a finite number above 0, or 0 for none")
        if len(request.request_id) > 64:
            raise invalid("request_id", f"has {len(request.request_id)} characters: expected at most 64")
        optimizer = run_messages.optimizer(request.optimizer)
        run = await self._runs.create(served, optimizer, clip_norm, request.checkpoint_interval, request.request_id)
        return pb.CreateRunResponse(run=run_messages.run(run))

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=run_messages.run(self._run(request.run), request.client))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        return pb.ListRunsResponse(runs=run_messages.runs(self._runs))

    async def DeleteRun(self, request: pb.DeleteRunRequest, context: Context) -> pb.DeleteRunResponse:
        if request.run not in self._runs.broken:
            self._run(request.run)
        await self._runs.delete(request.run)
        return pb.DeleteRunResponse()

    async def ForwardBackward(
        self, requests: AsyncIterator[pb.ForwardBackwardRequest], context: Context
    ) -> pb.ForwardBackwardResponse:
        caller = caller_of(context)
        received = await received_examples.receive(requests, self._config.max_training_bytes, self._incoming, caller)
        try:
            run, call = self._called(received.first.call, context)
            examples: list[Example] | ServerError
            try:
                examples = await self._decode(received, run.weights.network.spec)
            except ServerError as error:  # answered in its turn, as it uses up its number
                examples = error
            start = time.monotonic()
            accumulated = await run.forward_backward(call, received.digest, examples, received.nbytes)
            response = pb.ForwardBackwardResponse(
                loss=float(accumulated.losses.sum()), losses=accumulated.losses.tolist(), step=accumulated.step
            )
            response.timing.queue_seconds = time.monotonic() - start
            run_messages.fill_progress(response.progress, run.progress(call.client))
            return response
        finally:
            self._incoming.give(received.nbytes, caller)

    async def OptimStep(self, request: pb.OptimStepRequest, context: Context) -> pb.OptimStepResponse:
        run, call = self._called(request.call, context)
        rate = request.learning_rate if request.HasField("learning_rate") else None
        if rate is not None and not (math.isfinite(rate) and rate >= 0):
            raise invalid("learning_rate", f"is {rate}: expected a finite number of at least 0")
        if len(request.calls) > _MAX_CALLS:
            raise invalid("calls", f"names {len(request.calls)} clients: expected at most {_MAX_CALLS}")
        for client, number in request.calls.items():
            CallId(client, number)
        stepped = await run.apply_step(call, rate, request.expected_step, dict(request.calls))
        response = pb.OptimStepResponse(step=stepped.step, gradient_norm=stepped.norm, calls=stepped.calls)
        run_messages.fill_progress(response.progress, run.progress(call.client))
        return response

    async def SaveCheckpoint(self, request: pb.SaveCheckpointRequest, context: Context) -> pb.SaveCheckpointResponse:
        run, call = self._called(request.call, context)
        if request.name:
            check_checkpoint_name(request.name)
        await run.save(call, request.name)
        response = pb.SaveCheckpointResponse()
        run_messages.fill_progress(response.progress, run.progress(call.client))
        return response

    async def LoadCheckpoint(self, request: pb.LoadCheckpointRequest, context: Context) -> pb.LoadCheckpointResponse:
        run, call = self._called(request.call, context)
        await run.load(call, check_checkpoint_name(request.name))
        response = pb.LoadCheckpointResponse()
        run_messages.fill_progress(response.progress, run.progress(call.client))
        return response

    async def PublishRun(self, request: pb.PublishRunRequest, context: Context) -> pb.PublishRunResponse:
        run, call = self._called(request.call, context)
        published = await run.publish(call)
        response = pb.PublishRunResponse(weights_version=published.version)
        run_messages.fill_progress(response.progress, run.progress(call.client))
        return response

    def _run(self, run_id: str) -> TrainingRun:
        run = self._runs.get(run_id)
        set_model(run.meta.model)
        return run

    def _called(self, message: pb.CallId, context: Context) -> tuple[TrainingRun, CallId]:
        run = self._run(message.run)
        return run, CallId(message.client, message.number, message.acknowledged, message.step, caller_of(context))

    async def _decode(self, received: received_examples.ReceivedExamples, spec: ModelSpec) -> list[Example]:
        most = min(self._config.max_training_steps, max_cells(spec, self._config.max_activation_bytes))
        if received.nbytes <= _LARGE_BYTES:
            return received_examples.decode(received, spec, self._config, most)
        return await asyncio.to_thread(received_examples.decode, received, spec, self._config, most)


def _gradient_request(head: pb.ComputeGradientsRequest) -> GradientRequest:
    names = set(head.with_respect_to)
    for number in names:
        if number not in gradient_response.GRADIENT_FIELDS and number != pb.WITH_RESPECT_TO_PARAMETERS:
            raise invalid("with_respect_to", f"has {number}: expected WithRespectTo's")
    form = _FORMS.get(head.parameter_form)
    if form is None:
        raise invalid("parameter_form", f"is {head.parameter_form}: expected a ParameterForm")
    fields = {name: number in names for number, name in gradient_response.GRADIENT_FIELDS.items()}
    parameters: ParameterForm = form if pb.WITH_RESPECT_TO_PARAMETERS in names else "none"
    return GradientRequest(parameters=parameters, final_state=True, **fields)


def _bfloat16(head: pb.ComputeGradientsRequest) -> bool:
    wanted = head.parameter_data_type
    if wanted not in (tensor_pb2.DATA_TYPE_UNSPECIFIED, tensor_pb2.DATA_TYPE_BFLOAT16):
        raise invalid("parameter_data_type", f"is {wanted}: expected BFLOAT16, or none for the model's own")
    return wanted == tensor_pb2.DATA_TYPE_BFLOAT16
