"""Live sessions that say their rate: checked, promised up to a load, and refused alone beyond it."""

import math

import pytest
from helpers.gate import keep_cost
from helpers.raw_calls import Sessions, assert_serves, entry, frames
from helpers.real_server import open_channel, until
from seqloom.v1 import inference_service_pb2 as pb


def opening(rate, **more):
    return pb.OpenSession(model="small", steps_per_second=rate, **more)


@pytest.mark.parametrize("rate", [math.nan, math.inf, -math.inf, -1.0, -5e-324])
async def test_a_rate_that_is_none_is_refused_with_the_field(served, channel, rate):
    sessions = Sessions(channel)
    await sessions.open(1)
    await sessions.send(entry(2, frames(3), open=opening(rate)))
    failure = await sessions.error(2)
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert failure.fields == ["entries.open.steps_per_second"]
    assert str(rate) in failure.message
    assert served.value("active_streams") == 1
    assert served.engine.sequences.load.load() == 0
    await sessions.send(entry(1, frames(5), end=True))
    assert (await sessions.until_ended(1))[1].ended.steps == 5


@pytest.mark.parametrize("whole", [True, False])
async def test_a_whole_sequence_has_no_rate(served, channel, whole):
    sessions = Sessions(channel)
    await sessions.send(entry(1, frames(3), open=opening(10.0, whole_sequence=whole), end=not whole))
    failure = await sessions.error(1)
    assert (failure.code, failure.fields) == ("INVALID_ARGUMENT", ["entries.open.steps_per_second"])
    await assert_serves(served, channel)


@pytest.mark.parametrize("rate", [0.0, -0.0, 5e-324, 1e-10, 100.0])
async def test_a_session_of_any_rate_is_answered_and_gives_back_what_it_took(served, channel, rate):
    sessions = Sessions(channel)
    for number in (1, 2):
        await sessions.send(entry(number, frames(40), open=opening(rate)))
    for number in (1, 2):
        await sessions.send(entry(number, frames(5), end=True))
    ended = {reply.session: reply.ended.steps for reply in await sessions.rest() if reply.HasField("ended")}
    assert ended == {1: 45, 2: 45}
    await until(lambda: served.value("active_streams") == 0)
    assert not served.engine.sequences.load._demands


async def test_beyond_the_load_a_session_is_refused_alone_and_room_again_when_one_ends(serve):
    async with serve(max_live_load=0.001) as served, open_channel(served.address) as channel:
        keep_cost(served.engine.registry.current("small"), per_slice=1e-9, per_step=1e-9, per_cell=4e-6)
        served.engine.sequences.load._idle_seconds = None  # the loop of a test is as busy as its machine
        sessions = Sessions(channel)
        for number in (1, 2):
            await sessions.send(entry(number, open=opening(100.0)))
            assert (await sessions.next()).HasField("opened")
        await sessions.send(entry(3, frames(3), open=opening(100.0)))
        failure = await sessions.error(3)
        assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert failure.retry_after > 0
        assert "max_live_load" in failure.message
        assert served.value("rejected_total", reason="live_load") == served.value("rejected_total") == 1
        assert served.value("active_streams") == 2
        await sessions.send(entry(4, open=opening(0.0)))  # what has no rate takes what is left
        assert (await sessions.next()).HasField("opened")
        await sessions.send(entry(1, frames(5), end=True))
        assert (await sessions.until_ended(1))[1].ended.steps == 5
        await sessions.send(entry(5, open=opening(100.0)))
        assert (await sessions.next()).HasField("opened")
        sessions.call.cancel()
        await until(lambda: served.value("active_streams") == 0)
        assert served.engine.sequences.load.load() == 0
        assert not served.engine.sequences.load._demands
