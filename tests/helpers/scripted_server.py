"""A gRPC server of the protocol that answers as a test says, and keeps what it was sent and when."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2
from grpc_status import rpc_status
from seqloom.v1 import inference_service_pb2 as pb
from seqloom.v1 import model_service_pb2, training_service_pb2
from seqloom_server.engine.core.overload import overloaded
from seqloom_server.rpc.calls.status import status_of

_METHODS = {
    f"/{service.full_name}/{method.name}": method
    for file in (pb, model_service_pb2, training_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
_REPLY_FIELDS = {
    status_pb2.Status: "error",
    training_service_pb2.ForwardBackwardResponse: "forward_backward",
    training_service_pb2.OptimStepResponse: "optim_step",
}


class ScriptedServer:
    """Answers each call's first message, and each entry of a StreamInfer or RunCalls call, with answer(it): a message,
    or None. Of an entry of RunCalls it is the call in it, and the reply that of the call's own method. shares_runs:
    whether it knows RunCalls.

    A google.rpc.Status is the error of the call or of the session. GetModel is answered without being asked: "small"
    has frames of `width` numbers. requests: what came, and when, on time.monotonic's clock. cancelled: the numbers of
    the entries of RunCalls that were. While `reading` is not set,
    nothing is read, so that clients cannot send.
    """

    def __init__(self, answer: Callable[[Message], Message | None], width: int, *, shares_runs: bool = True) -> None:
        self.address = ""
        self.requests: list[tuple[Message, float]] = []
        self.cancelled: list[int] = []
        self.reading = asyncio.Event()
        self.reading.set()
        self._answer = answer
        self._shares_runs = shares_runs
        spec = model_service_pb2.ModelSpec(
            cell=1, activation=1, data_type=1, input_size=width, hidden_size=7, output_size=3, num_layers=1
        )
        self._model = model_service_pb2.Model(name="small", spec=spec, weights_version=1)

    def of(self, kind: type[Message]) -> list[tuple[Message, float]]:
        """The requests of a kind."""
        return [(request, at) for request, at in self.requests if isinstance(request, kind)]

    def opened(self) -> list[pb.OpenSession]:
        """How each session was opened."""
        return [request.open for request, _ in self.of(pb.SessionRequest) if request.HasField("open")]

    def handler(self, name: str) -> grpc.RpcMethodHandler | None:
        if name.endswith("RunCalls") and not self._shares_runs:
            return None
        read = GetMessageClass(_METHODS[name].input_type).FromString
        answer = {"StreamInfer": self._sessions, "RunCalls": self._run_calls}.get(name.rpartition("/")[2], self._call)
        return grpc.stream_stream_rpc_method_handler(answer, read, lambda reply: reply.SerializeToString())

    async def _call(self, requests, context):
        messages = [request async for request in requests]
        if isinstance(messages[0], model_service_pb2.GetModelRequest):
            yield model_service_pb2.GetModelResponse(model=self._model)
            return
        reply = self._take(messages[0])
        if isinstance(reply, status_pb2.Status):
            await context.abort_with_status(rpc_status.to_status(reply))
        yield reply

    async def _sessions(self, requests, context):
        await self.reading.wait()
        async for request in requests:
            for entry in request.entries:
                reply = self._take(entry)
                if isinstance(reply, status_pb2.Status):
                    reply = pb.SessionResponse(error=reply)
                if reply is not None:
                    reply.session = entry.session
                    yield pb.StreamInferResponse(entries=[reply])
            await self.reading.wait()

    async def _run_calls(self, requests, context):
        await self.reading.wait()
        async for request in requests:
            for entry in request.entries:
                kind = entry.WhichOneof("call")
                self.cancelled += [entry.entry] * entry.cancel
                reply = None if kind is None else self._take(getattr(entry, kind))
                if reply is not None:
                    field = _REPLY_FIELDS[type(reply)]
                    yield training_service_pb2.RunCallsResponse(
                        entries=[training_service_pb2.RunCallReply(entry=entry.entry, **{field: reply})]
                    )
            await self.reading.wait()

    def _take(self, request: Message) -> Message | None:
        self.requests.append((request, time.monotonic()))
        return self._answer(request)


def refusal(retry_after: float) -> status_pb2.Status:
    """The status of OVERLOADED."""
    return status_of(overloaded("busy", retry_after), "7")


@contextlib.asynccontextmanager
async def scripted_server(
    answer: Callable[[Message], Message | None] = lambda request: None,
    width: int = 5,
    address: str = "127.0.0.1:0",
    *,
    shares_runs: bool = True,
) -> AsyncIterator[ScriptedServer]:
    script = ScriptedServer(answer, width, shares_runs=shares_runs)

    class Every(grpc.GenericRpcHandler):
        def service(self, details):
            return script.handler(details.method)

    server = grpc.aio.server(handlers=[Every()])
    script.address = f"127.0.0.1:{server.add_insecure_port(address)}"
    await server.start()
    try:
        yield script
    finally:
        script.reading.set()
        await server.stop(0)
