"""Stream groups by hand on the generated stubs: calls of groups beside entries of sessions, and their answers."""

import grpc
import numpy as np
from seqloom import tensors
from seqloom.v1 import inference_service_pb2 as pb
from seqloom.v1 import inference_service_pb2_grpc, tensor_pb2
from seqloom_server.engine.core.sequence import Op

from helpers.raw_calls import failure_of
from helpers.real_server import until

PARTS = ("hidden", "cell", "inputs")


def numbers(streams, dtype="i4"):
    return tensors.encode(np.array(streams, dtype))


def some(streams):
    """A StreamSet of these streams, or of "all"."""
    return pb.StreamSet(all=True) if streams == "all" else pb.StreamSet(streams=numbers(streams))


def state_message(parts):
    """A State of parts [rows, w, width]."""
    return tensor_pb2.State(**{name: tensors.encode(part) for name, part in zip(PARTS, parts, strict=False)})


def state_parts(message):
    return tuple(tensors.decode(getattr(message, name)) for name in PARTS if message.HasField(name))


def block_at(stream, step, streams, steps):
    return pb.GroupBlock(stream=stream, step=step, streams=streams, steps=steps)


def call(number, x=None, *, streams=None, set=None, reset=None, get=None, place=None, **more):
    """A GroupRequest. x: frames [w, k, D]; set: (streams, parts of a state); place: (stream, step, streams, steps)."""
    return pb.GroupRequest(
        group=number,
        frames=None if x is None else tensors.encode(x),
        streams=None if streams is None else numbers(streams),
        set=None if set is None else pb.StreamStates(streams=some(set[0]), state=state_message(set[1])),
        reset=None if reset is None else some(reset),
        get=None if get is None else some(get),
        place=None if place is None else block_at(*place),
        **more,
    )


def opening(number, n, model="small", x=None, *, call_of=None, **more):
    """The entry that opens a group of n streams, with the rest of a call where one is given."""
    entry = call(number, x, **(call_of or {}))
    entry.open.CopyFrom(pb.OpenGroup(model=model, streams=n, **more))
    return entry


def parts_of(number, x, blocks, *, streams=None, **more):
    """The entries of a call in parts; blocks: (stream, step, w, k) of each. more: of the first."""
    w, k = x.shape[:2]
    entries = []
    for i, (stream, step, across, deep) in enumerate(blocks):
        first = {"streams": streams, **more} if not i else {}
        block = x[stream : stream + across, step : step + deep]
        place = (stream, step, w, k)
        entries.append(call(number, block, place=place, more=i < len(blocks) - 1, **first))
    return entries


class Groups:
    """One StreamInfer call. send() takes GroupRequests and SessionRequests; next() gives the answers to both."""

    def __init__(self, channel: grpc.aio.Channel, timeout: float = 12) -> None:
        self.call = inference_service_pb2_grpc.InferenceServiceStub(channel).StreamInfer(timeout=timeout)
        self.messages = []  # that came, as they came
        self._replies = []

    async def send(self, *entries):
        """Sends one message."""
        groups = [entry for entry in entries if isinstance(entry, pb.GroupRequest)]
        sessions = [entry for entry in entries if isinstance(entry, pb.SessionRequest)]
        await self.call.write(pb.StreamInferRequest(entries=sessions, groups=groups))

    async def next(self):
        """Returns the next reply, of a session or of a group; None where the call is over."""
        while not self._replies:
            message = await self.call.read()
            if message is grpc.aio.EOF:
                return None
            self.messages.append(message)
            self._replies += [*message.entries, *message.groups]
        return self._replies.pop(0)

    async def of(self, number):
        """Returns the next reply, which must be of this group and no error."""
        reply = await self.next()
        assert reply is not None, f"the call is over: {await self.call.code()} {await self.call.details()}"
        assert isinstance(reply, pb.GroupResponse), reply
        assert reply.group == number, reply
        assert not reply.HasField("error"), reply
        return reply

    async def open(self, number, n, model="small", **more):
        await self.send(opening(number, n, model, **more))
        reply = await self.of(number)
        assert reply.HasField("opened"), reply
        return reply.opened

    async def outputs(self, number, w, k, field="values"):
        """Reads all blocks of the outputs of a call with frames [w, k, D]: ([w, k, ...], first steps [w], blocks)."""
        whole, first, seen, blocks = None, None, np.zeros((w, k), int), []
        while True:
            reply = await self.of(number)
            assert reply.HasField("outputs"), reply
            place = reply.outputs.place if reply.outputs.HasField("place") else block_at(0, 0, w, k)
            rows = tensors.decode(getattr(reply.outputs.outputs, field))
            if first is None:
                first = np.full(w, reply.outputs.first_step)
                if reply.outputs.HasField("first_steps"):
                    first = tensors.decode(reply.outputs.first_steps)
                    assert first.dtype == np.int64
                whole = np.zeros((w, k, *rows.shape[1:]), rows.dtype)
            else:
                assert not reply.outputs.HasField("first_steps")
            where = np.s_[place.stream : place.stream + place.streams, place.step : place.step + place.steps]
            whole[where] = rows.reshape(place.streams, place.steps, *rows.shape[1:])
            seen[where] += 1
            blocks.append((place.stream, place.step, place.streams, place.steps))
            if (seen == 1).all():
                return whole, first, blocks

    async def states(self, number, w, kind="states"):
        """Reads all blocks of states: their parts [rows, w, width], and the replies."""
        parts, replies, come = [], [], 0
        while come < w:
            reply = await self.of(number)
            assert reply.HasField(kind), reply
            block = reply.states if kind == "states" else getattr(reply, kind).states
            assert block.stream == come
            parts.append(state_parts(block.state))
            come += parts[-1][0].shape[1]
            replies.append(reply)
        assert come == w
        return tuple(np.concatenate(part, 1) for part in zip(*parts, strict=True)), replies

    async def done(self, number):
        reply = await self.of(number)
        assert reply.done, reply

    async def failure(self, number):
        """Returns the number of the failure that comes next, and what it says."""
        reply = await self.of(number)
        assert reply.HasField("failure"), reply
        return reply.failure.number, failure_of(reply.failure.error)

    async def error(self, number):
        """Returns the error that ends a group, which must come next but for `opened` and `going_away`."""
        while (reply := await self.next()) is not None:
            if not (reply.HasField("opened") or reply.going_away):
                assert isinstance(reply, pb.GroupResponse), reply
                assert reply.group == number, reply
                assert reply.HasField("error"), reply
                return failure_of(reply.error)
        raise AssertionError(f"the call is over: {await self.call.code()} {await self.call.details()}")

    async def last_error(self, number):
        """Reads on to the error that ends a group, past what was answered before."""
        while not (reply := await self.next()).HasField("error"):
            assert reply.group == number, reply
        return failure_of(reply.error)

    async def rest(self):
        """Half-closes, and returns whatever still comes."""
        await self.call.done_writing()
        replies = []
        while (reply := await self.next()) is not None:
            replies.append(reply)
        assert await self.call.code() is grpc.StatusCode.OK, await self.call.details()
        return replies


async def assert_free(served):
    """Whatever live work held has come back: slots, queue bounds, budgets, loads and counts."""
    engine = served.engine
    await until(lambda: not len(engine.sequences))
    await until(lambda: all(not weights.slots.in_use for weights in engine.registry.alive()))
    scheduler = engine._scheduler
    assert (scheduler.waiting_steps, scheduler.waiting_bytes, scheduler.queued, scheduler.live_sessions) == (0, 0, 0, 0)
    assert not scheduler._bounds._callers
    assert engine.sequences._bounds[Op.STREAM].used == 0
    assert not engine.sequences._bounds[Op.STREAM]._callers
    assert not engine.sequences.load._demands
    await until(lambda: served.server._inference._budget._bound.used == 0)  # when the last answer is written
    for stream in served.server._inference._calls:
        assert (stream._outbox._promised, stream._outbox._bytes, stream._outbox.full) == (0, 0, False)
    assert served.value("active_streams") == 0
