"""One RunCalls call by hand: messages of many entries, and each entry's reply, whatever message it came in."""

import grpc
from seqloom.v1 import training_service_pb2 as pb

from helpers.raw_calls import Failure, failure_of
from helpers.raw_training_calls import examples, stub

Entry = pb.RunCall


class Entries:
    """Sends entries and takes their replies by number. messages: how many entries each message of replies had."""

    def __init__(self, channel: grpc.aio.Channel, timeout: float = 30) -> None:
        self.call = stub(channel).RunCalls(timeout=timeout)
        self.messages: list[int] = []
        self._replies: dict[int, pb.RunCallReply] = {}

    async def send(self, *entries: Entry) -> None:
        """Sends all of them in one message."""
        await self.call.write(pb.RunCallsRequest(entries=entries))

    async def reply(self, number: int) -> pb.RunCallReply:
        """Reads until the reply of an entry has come."""
        while number not in self._replies:
            message = await self.call.read()
            assert message is not grpc.aio.EOF, f"{await self.call.code()} {await self.call.details()}"
            self.messages.append(len(message.entries))
            for reply in message.entries:
                assert reply.entry not in self._replies, "an entry was answered twice"
                self._replies[reply.entry] = reply
        return self._replies.pop(number)

    async def error(self, number: int) -> Failure:
        reply = await self.reply(number)
        assert reply.HasField("error"), reply
        return failure_of(reply.error)

    async def rest(self) -> list[pb.RunCallReply]:
        """Half-closes, and returns whatever still comes."""
        await self.call.done_writing()
        while (message := await self.call.read()) is not grpc.aio.EOF:
            self._replies |= {reply.entry: reply for reply in message.entries}
        assert await self.call.code() is grpc.StatusCode.OK, await self.call.details()
        return [self._replies.pop(number) for number in sorted(self._replies)]


def forward_backward(number: int, call: pb.CallId, batch: pb.Examples | None = None, parts: int = 1) -> Entry:
    request = pb.ForwardBackwardRequest(call=call, examples=examples() if batch is None else batch, parts=parts)
    return Entry(entry=number, forward_backward=request)


def optim_step(number: int, call: pb.CallId, **more) -> Entry:
    return Entry(entry=number, optim_step=pb.OptimStepRequest(call=call, **more))
