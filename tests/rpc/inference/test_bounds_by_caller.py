"""Bounds on sessions and unread outputs hold for each connection: one that takes all leaves others their part."""

import asyncio
import itertools

import numpy as np
from helpers.raw_calls import Sessions, assert_serves, entry, failure_of, frames, infer, infer_request
from helpers.real_server import open_channel, until
from seqloom.v1 import inference_service_pb2 as pb
from seqloom_server.nn.spec import ModelSpec

WIDE = ModelSpec(cell="elman", input_size=5, hidden_size=3, output_size=2000)  # 512,000 bytes for 64 steps
MODELS = {"wide": WIDE, "small": ModelSpec(cell="elman", input_size=5, hidden_size=3, output_size=2)}


async def test_one_call_that_opens_20_000_sessions_leaves_room_for_another_connection(serve):
    async with serve(max_sessions=1000) as served, open_channel(served.address) as channel:
        sessions = Sessions(channel, timeout=60)
        for start in (0, 10_000):
            await sessions.send(*[entry(number, open="small") for number in range(start, start + 10_000)])
        opened, refused = set(), set()
        while len(opened) + len(refused) < 20_000:
            reply = await sessions.next()
            if reply.HasField("opened"):
                opened.add(reply.session)
                continue
            refused.add(reply.session)
            if len(refused) % 1000 == 1:
                failure = failure_of(reply.error)
                assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
                assert failure.retry_after > 0
        assert (len(opened), len(refused)) == (900, 19_100)
        assert served.value("rejected_total", reason="sessions") == 19_100
        assert served.value("refusal_duration_seconds_count") == 19_100
        async with open_channel(served.address) as another:
            others = Sessions(another)
            for number in range(90):
                await others.open(number)
            await others.send(entry(90, open="small"))
            assert (await others.error(90)).code == "RESOURCE_EXHAUSTED"
            await others.send(entry(0, frames(5), end=True))
            assert (await others.until_ended(0))[1].ended.steps == 5
            sessions.call.cancel()
            await until(lambda: served.value("active_streams") == 89)
            await others.send(*[entry(number, open="small") for number in range(100, 900)])
            for _ in range(800):
                assert (await others.next()).HasField("opened")
            others.call.cancel()
        await until(lambda: served.value("active_streams") == 0)
        assert served.engine.sequences._bounds["stream"].used == 0


async def test_a_connection_that_reads_no_outputs_is_refused_alone(serve):
    async with (
        serve(MODELS, max_output_bytes=16 << 20) as served,
        open_channel(served.address) as deaf,
        open_channel(served.address) as channel,
    ):
        sessions = Sessions(deaf)
        x = frames(64)
        numbers = itertools.count()

        async def send_until_refused(times):
            # what the transport holds of it is read, in a way; then the outputs wait on the server
            refused = served.value("rejected_total", reason="unread_outputs") + times
            while served.value("rejected_total", reason="unread_outputs") < refused:
                await sessions.send(*[entry(next(numbers), x, open="wide", end=True) for _ in range(10)])
                await asyncio.sleep(0)

        await send_until_refused(100)
        for _ in range(20):
            reply = await infer(channel, infer_request("wide", frames(64)))
            assert list(reply.lengths) == [64]
            others = Sessions(channel)
            await others.send(entry(1, x, open="wide", end=True))
            values, last = await others.until_ended(1)
            assert last.HasField("ended")
            assert np.shape(values) == (64, 2000)
        await assert_serves(served, channel, "small")
        await send_until_refused(10)
        sessions.call.cancel()
        await until(lambda: not served.engine.sequences)
        replies = Sessions(deaf)  # what it did not read has been given back
        await replies.send(*[entry(n, x, open=pb.OpenSession(model="wide"), end=True) for n in range(20)])
        assert sum(reply.HasField("ended") for reply in await replies.rest()) == 20
