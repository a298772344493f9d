"""What each call on a run does with its message, by whatever rpc it came: checks it, has it done, makes the reply."""

import math
import time

from seqloom.v1 import training_service_pb2 as pb

from seqloom_server.config import ServerConfig
from seqloom_server.engine.engine import Engine
from seqloom_server.engine.training.checkpoint_files import check_checkpoint_name
from seqloom_server.engine.training.numbered_calls import CallId, check_names
from seqloom_server.engine.training.training_run import TrainingRun
from seqloom_server.errors import ServerError, invalid, without_frames
from seqloom_server.nn.losses.training_example import Example
from seqloom_server.rpc.calls.callers import run_owner
from seqloom_server.rpc.calls.interceptors import set_model, token_use
from seqloom_server.rpc.training import received_examples, run_messages
from seqloom_server.rpc.training.received_call import ReceivedExamples

_MAX_CALLS = 1 << 12  # clients that a repeated step may name


class RunMethods:
    """The calls on the runs of one engine. caller: whom the work is counted for. Each raises ServerError."""

    def __init__(self, engine: Engine, config: ServerConfig) -> None:
        self._runs = engine.runs
        self._config = config

    def run(self, run_id: str) -> TrainingRun:
        """Returns the caller's run, for whose model the current call is counted. Raises ServerError RUN_NOT_FOUND,
        RUN_BROKEN, SHUTTING_DOWN."""
        run = self._runs.get(run_id, run_owner())
        set_model(run.meta.model)
        return run

    async def forward_backward(self, received: ReceivedExamples, caller: str) -> pb.ForwardBackwardResponse:
        """received: the parts of a ForwardBackwardRequest, which are freed once they are decoded."""
        run, call = self._called(received.first.call, caller)
        examples: list[Example] | ServerError
        try:
            examples = await received_examples.decode_soon(received, run.weights.network.spec, self._config)
        except ServerError as error:  # answered in its turn, as it uses up its number
            # kept as the call's reply, and with its frames the message, which others' calls came in, too
            examples = without_frames(error)
        received.free()
        use = token_use()
        if use is not None and use.limits_steps and not isinstance(examples, ServerError):
            use.check_steps()
            use.add_steps(sum(len(example.xs) for example in examples))
        start = time.monotonic()
        accumulated = await run.forward_backward(call, received.digest, examples, received.nbytes)
        response = pb.ForwardBackwardResponse(
            loss=float(accumulated.losses.sum()), losses=accumulated.losses.tolist(), step=accumulated.step
        )
        response.timing.queue_seconds = time.monotonic() - start
        run_messages.fill_progress(response.progress, run.progress(call.client))
        return response

    async def optim_step(self, request: pb.OptimStepRequest, caller: str) -> pb.OptimStepResponse:
        run, call = self._called(request.call, caller)
        rate = request.learning_rate if request.HasField("learning_rate") else None
        if rate is not None and not (math.isfinite(rate) and rate >= 0):
            raise invalid("learning_rate", f"is {rate}: expected a finite number of at least 0")
        if len(request.calls) > _MAX_CALLS:
            raise invalid("calls", f"names {len(request.calls)} clients: expected at most {_MAX_CALLS}")
        calls, expected_step = dict(request.calls), request.expected_step
        check_names(calls)
        run.learn_step(call, calls)
        del request, calls  # while it waits: the request may be a part of a large message, its names are many objects
        stepped = await run.apply_step(call, rate, expected_step)
        response = pb.OptimStepResponse(step=stepped.step, gradient_norm=stepped.norm, calls=stepped.calls)
        run_messages.fill_progress(response.progress, run.progress(call.client))
        return response

    async def save_checkpoint(self, request: pb.SaveCheckpointRequest, caller: str) -> pb.SaveCheckpointResponse:
        run, call = self._called(request.call, caller)
        if request.name:
            check_checkpoint_name(request.name)
        await run.save(call, request.name)
        response = pb.SaveCheckpointResponse()
        run_messages.fill_progress(response.progress, run.progress(call.client))
        return response

    async def load_checkpoint(self, request: pb.LoadCheckpointRequest, caller: str) -> pb.LoadCheckpointResponse:
        run, call = self._called(request.call, caller)
        await run.load(call, check_checkpoint_name(request.name))
        response = pb.LoadCheckpointResponse()
        run_messages.fill_progress(response.progress, run.progress(call.client))
        return response

    async def publish_run(self, request: pb.PublishRunRequest, caller: str) -> pb.PublishRunResponse:
        run, call = self._called(request.call, caller)
        published = await run.publish(call)
        response = pb.PublishRunResponse(weights_version=published.version)
        run_messages.fill_progress(response.progress, run.progress(call.client))
        return response

    def _called(self, message: pb.CallId, caller: str) -> tuple[TrainingRun, CallId]:
        run = self.run(message.run)
        return run, CallId(message.client, message.number, message.acknowledged, message.step, caller)
