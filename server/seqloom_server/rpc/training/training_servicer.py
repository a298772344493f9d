"""TrainingService: gradients for the caller, and runs that train on the server."""

import asyncio
import math
import time
from collections.abc import AsyncIterator

from seqloom.v1 import tensor_pb2, training_service_pb2_grpc
from seqloom.v1 import training_service_pb2 as pb

from seqloom_server.config import ServerConfig
from seqloom_server.engine.core.training_job import TrainingCall
from seqloom_server.engine.engine import Engine
from seqloom_server.errors import Overload, invalid
from seqloom_server.nn.losses.training_example import GradientRequest, ParameterForm
from seqloom_server.rpc.calls.byte_budget import ByteBudget
from seqloom_server.rpc.calls.callers import caller_of, run_owner
from seqloom_server.rpc.calls.interceptors import Context, set_model, token_use
from seqloom_server.rpc.calls.request_metrics import RequestMetrics
from seqloom_server.rpc.training import gradient_response, received_call, received_examples, run_messages
from seqloom_server.rpc.training.run_methods import RunMethods
from seqloom_server.rpc.training.run_streams import RunStreams

_FORMS: dict[int, ParameterForm] = {
    pb.PARAMETER_FORM_UNSPECIFIED: "smallest",
    pb.PARAMETER_FORM_SMALLEST: "smallest",
    pb.PARAMETER_FORM_DENSE: "dense",
    pb.PARAMETER_FORM_NORMS: "norms",
}


class TrainingServicer(training_service_pb2_grpc.TrainingServiceServicer):
    """Decodes and checks, hands to the engine, encodes. outputs: the budget that unread gradients are charged to."""

    def __init__(
        self, engine: Engine, config: ServerConfig, request_metrics: RequestMetrics, outputs: ByteBudget
    ) -> None:
        self._engine = engine
        self._runs = engine.runs
        self._config = config
        self._outputs = outputs
        self._incoming = ByteBudget(
            config.max_queue_bytes, "training calls are on their way", cause=Overload.QUEUE_FULL
        )
        self._methods = RunMethods(engine, config)
        self._streams = RunStreams(self._methods, config, request_metrics, self._incoming)

    async def ComputeGradients(
        self, requests: AsyncIterator[pb.ComputeGradientsRequest], context: Context
    ) -> AsyncIterator[pb.ComputeGradientsResponse]:
        caller = caller_of(context)
        received = await received_call.receive(requests, self._config.max_training_bytes, self._incoming, caller)
        charged = 0
        try:
            head: pb.ComputeGradientsRequest = received.first
            weights = self._engine.registry.current(head.model, head.weights_version)
            set_model(weights.model)
            spec = weights.network.spec
            request, bfloat16 = _gradient_request(head), _bfloat16(head)
            examples = await received_examples.decode_soon(received, spec, self._config)
            steps = sum(len(example.xs) for example in examples)
            if (use := token_use()) is not None:
                use.check_steps()
                use.add_steps(steps)
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
        run = await self._runs.create(
            served, optimizer, clip_norm, request.checkpoint_interval, request.request_id, run_owner()
        )
        return pb.CreateRunResponse(run=run_messages.run(run))

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=run_messages.run(self._methods.run(request.run), request.client))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        return pb.ListRunsResponse(runs=run_messages.runs(self._runs, run_owner()))

    async def DeleteRun(self, request: pb.DeleteRunRequest, context: Context) -> pb.DeleteRunResponse:
        owner = run_owner()
        if request.run not in self._runs.broken_for(owner):
            self._methods.run(request.run)
        await self._runs.delete(request.run, owner)
        return pb.DeleteRunResponse()

    async def ForwardBackward(
        self, requests: AsyncIterator[pb.ForwardBackwardRequest], context: Context
    ) -> pb.ForwardBackwardResponse:
        caller = caller_of(context)
        received = await received_call.receive(requests, self._config.max_training_bytes, self._incoming, caller)
        try:
            return await self._methods.forward_backward(received, caller)
        finally:
            self._incoming.give(received.nbytes, caller)

    async def RunCalls(self, requests: AsyncIterator[pb.RunCallsRequest], context: Context) -> None:
        await self._streams.serve(requests, context)

    async def OptimStep(self, request: pb.OptimStepRequest, context: Context) -> pb.OptimStepResponse:
        return await self._methods.optim_step(request, caller_of(context))

    async def SaveCheckpoint(self, request: pb.SaveCheckpointRequest, context: Context) -> pb.SaveCheckpointResponse:
        return await self._methods.save_checkpoint(request, caller_of(context))

    async def LoadCheckpoint(self, request: pb.LoadCheckpointRequest, context: Context) -> pb.LoadCheckpointResponse:
        return await self._methods.load_checkpoint(request, caller_of(context))

    async def PublishRun(self, request: pb.PublishRunRequest, context: Context) -> pb.PublishRunResponse:
        return await self._methods.publish_run(request, caller_of(context))

    def drain(self) -> None:
        """Ends `RunCalls` calls as soon as none of their entries is open: the server is shutting down."""
        self._streams.drain()

    async def finish(self, seconds: float) -> None:
        """Waits until every `RunCalls` call has ended, at most `seconds`."""
        await self._streams.finish(seconds)


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
