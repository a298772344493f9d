"""Outputs that callers leave unread are bounded, by call and for the server, however few bytes asked for them."""

import numpy as np
from helpers.raw_calls import Sessions, assert_serves, entry, frames, infer, infer_request
from helpers.real_server import open_channel, until
from helpers.tolerances import near
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc.inference import outbox

WIDE = ModelSpec(cell="elman", input_size=5, hidden_size=3, output_size=2000)  # 512,000 bytes for 64 steps
MODELS = {"wide": WIDE, "small": ModelSpec(cell="elman", input_size=5, hidden_size=3, output_size=2)}


CALL = {"method": "seqloom.v1.InferenceService/StreamInfer", "model": "", "code": "CANCELLED"}


def one_message(count):
    return [entry(number, frames(64), open="wide", end=True) for number in range(count)]


async def test_what_one_message_asks_for_beyond_the_servers_budget_is_refused_and_the_rest_served(serve):
    async with serve(MODELS, max_output_bytes=1 << 20) as served, open_channel(served.address) as channel:
        sessions = Sessions(channel)
        await sessions.send(*one_message(8))
        for number in (2, 3, 4, 5, 6, 7):
            failure = await sessions.error(number)
            assert failure.code == "RESOURCE_EXHAUSTED"
            assert failure.retry_after > 0
        assert served.value("rejected_total", reason="unread_outputs") == served.value("rejected_total") == 6
        rest = await sessions.rest()
        steps = [len(reply.outputs.outputs.values.data) for reply in rest if reply.HasField("outputs")]
        assert sum(steps) == 2 * 64 * 2000 * 4
        await assert_serves(served, channel, "small")
        again = Sessions(channel)  # what was read has been given back
        await again.send(*one_message(2))
        values, last = await again.until_ended(0)
        np.testing.assert_allclose(values, served.expected("wide", frames(64))[0], **near(rtol=1e-4, atol=1e-5))
        assert last.HasField("ended")


async def test_what_a_call_asks_for_beyond_its_bound_runs_as_it_is_read(serve, monkeypatch):
    monkeypatch.setattr(outbox, "_MAX_UNREAD_BYTES", 1 << 20)
    async with serve(MODELS) as served, open_channel(served.address) as channel:
        sessions = Sessions(channel)
        await sessions.send(*one_message(40))
        ended = [reply.session for reply in await sessions.rest() if reply.HasField("ended")]
        assert sorted(ended) == list(range(40))


async def test_a_call_that_goes_gives_back_what_it_was_promised(serve):
    async with serve(MODELS, max_output_bytes=1 << 20) as served, open_channel(served.address) as channel:
        for gone in range(1, 6):
            sessions = Sessions(channel)
            await sessions.send(*one_message(2))
            await sessions.next()
            sessions.call.cancel()
            # by whatever code: to a server a cancelled upload may look like one that has ended
            await until(lambda gone=gone: served.value("requests_total", method=CALL["method"]) == gone)
        sessions = Sessions(channel)
        await sessions.send(*one_message(2))
        assert len([reply for reply in await sessions.rest() if reply.HasField("ended")]) == 2


async def test_replies_of_infer_are_charged_while_they_are_on_their_way(serve):
    async with serve(MODELS, max_output_bytes=1 << 20) as served, open_channel(served.address) as channel:
        for _ in range(6):  # together more than the budget
            await infer(channel, infer_request("wide", frames(64)))
        # the books are done when replies are on their way already
        await until(lambda: served.value("steps_total", model="wide", op="infer") == 6 * 64)
