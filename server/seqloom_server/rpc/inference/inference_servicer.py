"""InferenceService: Infer for whole sequences, StreamInfer for many sessions in one call."""

import asyncio
import time
from collections.abc import AsyncIterator

import numpy as np
from seqloom import wire
from seqloom.v1 import inference_service_pb2, inference_service_pb2_grpc

from seqloom_server.config import ServerConfig
from seqloom_server.engine.core.sequence import Array, Chunk, Op, Sequence, SliceResult
from seqloom_server.engine.engine import Engine
from seqloom_server.errors import ServerError
from seqloom_server.rpc.calls import converters
from seqloom_server.rpc.calls.byte_budget import ByteBudget
from seqloom_server.rpc.calls.callers import caller_of
from seqloom_server.rpc.calls.interceptors import Context, set_model, token_use
from seqloom_server.rpc.calls.request_metrics import RequestMetrics
from seqloom_server.rpc.inference.stream_call import StreamCall

_OUTPUTS = inference_service_pb2.InferResponse.OUTPUTS_FIELD_NUMBER


class InferenceServicer(inference_service_pb2_grpc.InferenceServiceServicer):
    """Decodes and checks requests, feeds the engine, encodes results. outputs: the limit of unread outputs."""

    def __init__(
        self, engine: Engine, config: ServerConfig, request_metrics: RequestMetrics, outputs: ByteBudget
    ) -> None:
        self._engine = engine
        self._config = config
        self._request_metrics = request_metrics
        self._budget = outputs
        self._calls: dict[StreamCall, asyncio.Task[object]] = {}
        self._draining = False

    async def Infer(self, request: inference_service_pb2.InferRequest, context: Context) -> bytes:
        received = time.monotonic()
        weights = self._engine.registry.current(request.model, request.weights_version)
        set_model(weights.model)
        spec, config = weights.network.spec, self._config
        most = converters.max_steps(spec, config)
        xs = converters.sequences(request.sequences, spec, config.max_sequences_per_request, most)
        output = converters.output_spec(request.output, spec, "output")
        steps = sum(map(len, xs))
        size = converters.reply_bytes(output, spec, steps, len(xs), config.max_message_bytes)
        initial = None
        if request.HasField("initial_state"):
            initial = converters.served_state(request.initial_state, spec, len(xs), "initial_state")
        caller, use = caller_of(context), token_use()
        if use is not None:
            use.check_steps()
        self._budget.take(size, caller)
        # returned when the caller has read the response or disconnected
        context.add_done_callback(lambda _: self._budget.give(size, caller))  # type: ignore[arg-type]
        remaining = context.time_remaining()
        now = time.monotonic()
        sink = BatchSink(len(xs))
        opened: list[Sequence] = []
        try:
            for n in range(len(xs)):
                sequence = self._engine.open(
                    weights,
                    Op.INFER,
                    output,
                    sink,
                    initial_state=None if initial is None else tuple(part[:, n : n + 1] for part in initial),
                    deadline=None if remaining is None else now + remaining,
                    caller=caller,
                )
                opened.append(sequence)
            refused = self._engine.feed(
                (sequence, [Chunk(x, now, last=True)]) for sequence, x in zip(opened, xs, strict=True)
            )
            if refused:
                raise refused[0][1]
            if use is not None:
                use.add_steps(steps)
        except ServerError as error:
            self._request_metrics.rejected(error, time.monotonic() - received)
            self._engine.cancel(opened)
            raise
        try:
            results = await sink.done
        except BaseException:
            self._engine.unanswered(opened)
            raise
        finally:
            self._engine.cancel(opened)
        return _infer_response(weights.version, spec.state_parts, opened, results)

    async def StreamInfer(
        self, requests: AsyncIterator[inference_service_pb2.StreamInferRequest], context: Context
    ) -> None:
        call = StreamCall(
            self._engine, self._config, self._request_metrics, self._budget, caller_of(context), token_use()
        )
        task = asyncio.current_task()
        assert task is not None
        self._calls[call] = task
        if self._draining:
            call.drain()
        reading = asyncio.create_task(call.read_from(requests))
        try:
            await call.write_to(context)
        finally:
            del self._calls[call]
            reading.cancel()
            call.close()

    def drain(self) -> None:
        """Ends calls as soon as they have no session: the server is shutting down."""
        self._draining = True
        for call in self._calls:
            call.drain()

    async def finish(self, seconds: float) -> None:
        """Waits until every call has ended, at most `seconds`."""
        if self._calls:
            await asyncio.wait(self._calls.values(), timeout=seconds)


class BatchSink:
    """Collects the results of one call's sequences, until the last has ended or one has failed.

    done: the slice results of each sequence, in order.
    """

    def __init__(self, count: int) -> None:
        self.done: asyncio.Future[dict[Sequence, list[SliceResult]]] = asyncio.get_running_loop().create_future()
        self._results: dict[Sequence, list[SliceResult]] = {}
        self._running = count

    def deliver(self, sequence: Sequence, result: SliceResult) -> None:
        self._results.setdefault(sequence, []).append(result)
        self._running -= result.final_state is not None
        if not self._running and not self.done.done():
            self.done.set_result(self._results)

    def fail(self, sequence: Sequence, error: ServerError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


def _infer_response(
    version: int, state_parts: tuple[str, ...], opened: list[Sequence], results: dict[Sequence, list[SliceResult]]
) -> bytes:
    """Returns the bytes of an InferResponse."""

    def concatenate(arrays: list[Array | None]) -> Array | None:
        present = [array for array in arrays if array is not None]
        return (np.concatenate(present) if len(present) > 1 else present[0]) if present else None

    ordered = [result for sequence in opened for result in results[sequence]]
    finals = [results[sequence][-1].final_state for sequence in opened]
    parts = zip(*(final for final in finals if final is not None), strict=True)
    response = inference_service_pb2.InferResponse(
        lengths=[sequence.steps_done for sequence in opened], weights_version=version
    )
    converters.fill_state(response.final_state, state_parts, tuple(np.concatenate(part, axis=1) for part in parts))
    response.timing.queue_seconds = max(sequence.queue_seconds for sequence in opened)
    response.timing.compute_seconds = max(sequence.compute_seconds for sequence in opened)
    values = concatenate([result.values for result in ordered])
    labels = concatenate([result.labels for result in ordered])
    return wire.joined([response.SerializeToString(), *converters.outputs_field(_OUTPUTS, values, labels)])
