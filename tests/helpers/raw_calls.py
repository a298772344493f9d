"""Raw calls on the generated stubs, with numpy in and out, and the rich errors that come back."""

from dataclasses import dataclass

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from seqloom import tensors
from seqloom.v1 import inference_service_pb2 as pb
from seqloom.v1 import inference_service_pb2_grpc, tensor_pb2

from helpers.frames import noise
from helpers.tolerances import near


@dataclass
class Failure:
    """A rich error. code: the name of the gRPC status. retry_after: seconds, or None. fields: of BadRequest."""

    code: str
    message: str
    reason: str
    domain: str
    request_id: str
    retry_after: float | None
    fields: list[str]


def failure_of(status: status_pb2.Status) -> Failure:
    info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    retry_after = None
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    code = next(code.name for code in grpc.StatusCode if code.value[0] == status.code)
    fields = [violation.field for violation in bad.field_violations]
    return Failure(code, status.message, info.reason, info.domain, info.metadata["request_id"], retry_after, fields)


async def refused(call) -> Failure:
    """Awaits a call that must fail with a rich error."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    assert status is not None, f"no rich error: {caught.value}"
    return failure_of(status)


def frames(steps: int, width: int = 5, seed: int = 0) -> npt.NDArray[np.float32]:
    """[steps, width] of standard normal noise."""
    return noise(steps, width, seed, "f4")


def infer_request(model: str, *xs: npt.NDArray, kind: int = 0, **more) -> pb.InferRequest:
    rows = tensors.encode(np.concatenate(xs)) if xs else None
    sequences = tensor_pb2.SequenceBatch(rows=rows, lengths=[len(x) for x in xs])
    return pb.InferRequest(model=model, sequences=sequences, output=tensor_pb2.OutputSpec(kind=kind), **more)


async def infer(channel: grpc.aio.Channel, request: pb.InferRequest, **more) -> pb.InferResponse:
    return await inference_service_pb2_grpc.InferenceServiceStub(channel).Infer(request, timeout=30, **more)


async def assert_serves(served, channel: grpc.aio.Channel, model: str = "small") -> None:
    """A good request is answered rightly: whatever came before has broken nothing."""
    xs = [frames(9, served.networks[model].spec.input_size, seed=1), frames(4, served.networks[model].spec.input_size)]
    reply = await infer(channel, infer_request(model, *xs))
    expected = np.concatenate([served.expected(model, x)[0] for x in xs])
    np.testing.assert_allclose(tensors.decode(reply.outputs.values), expected, **near(rtol=1e-4, atol=1e-5))


class Sessions:
    """One StreamInfer call by hand: `send` entries, `next` entry of the replies, whatever message it came in."""

    def __init__(self, channel: grpc.aio.Channel, timeout: float = 30) -> None:
        self.call = inference_service_pb2_grpc.InferenceServiceStub(channel).StreamInfer(timeout=timeout)
        self._entries: list[pb.SessionResponse] = []

    async def send(self, *entries: pb.SessionRequest) -> None:
        await self.call.write(pb.StreamInferRequest(entries=entries))

    async def next(self) -> pb.SessionResponse | None:
        """Returns None where the call is over."""
        while not self._entries:
            message = await self.call.read()
            if message is grpc.aio.EOF:
                return None
            self._entries.extend(message.entries)
        return self._entries.pop(0)

    async def open(self, number: int, model: str = "small", **more) -> pb.SessionOpened:
        """Opens a session, and reads what was opened, which must be the next that comes."""
        await self.send(entry(number, open=pb.OpenSession(model=model, **more)))
        reply = await self.next()
        assert reply.session == number, reply
        assert reply.HasField("opened"), reply
        return reply.opened

    async def error(self, number: int) -> Failure:
        """Reads on to the error of a session, which must come next but for `opened` and `going_away`."""
        while (reply := await self.next()) is not None:
            if reply.session == number and not (reply.HasField("opened") or reply.going_away):
                assert reply.HasField("error"), reply
                return failure_of(reply.error)
        raise AssertionError(f"the call is over: {await self.call.code()} {await self.call.details()}")

    async def rest(self) -> list[pb.SessionResponse]:
        """Half-closes, and returns whatever still comes."""
        await self.call.done_writing()
        entries = []
        while (entry := await self.next()) is not None:
            entries.append(entry)
        assert await self.call.code() is grpc.StatusCode.OK, await self.call.details()
        return entries

    async def until_ended(self, number: int) -> tuple[npt.NDArray, pb.SessionResponse]:
        """Returns the values of all outputs of a session, and the entry with its end or its error."""
        parts = []
        while (entry := await self.next()) is not None:
            if entry.session == number and entry.HasField("outputs"):
                parts.append(tensors.decode(entry.outputs.outputs.values))
            if entry.session == number and (entry.HasField("ended") or entry.HasField("error")):
                return np.concatenate(parts) if parts else np.empty((0, 0)), entry
        raise AssertionError(f"session {number} never ended: {await self.call.code()} {await self.call.details()}")


def entry(number: int, x: npt.NDArray | None = None, *, open: str | pb.OpenSession | None = None, **more):
    """A SessionRequest; open: a model's name or an OpenSession."""
    if isinstance(open, str):
        open = pb.OpenSession(model=open)
    return pb.SessionRequest(session=number, open=open, frames=None if x is None else tensors.encode(x), **more)
