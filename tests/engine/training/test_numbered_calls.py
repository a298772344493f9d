"""The numbered calls on a run, without a server: what a refusal uses up, and how clients give way to others."""

import asyncio

import pytest
from seqloom_server.engine.training import numbered_calls
from seqloom_server.engine.training.call_order import CallOrder
from seqloom_server.engine.training.numbered_calls import CallId, NumberedCalls
from seqloom_server.engine.training.replies import Done
from seqloom_server.errors import Reason, ServerError

FULL = ServerError(Reason.OVERLOADED, "no room", retry_after=1.0)


def make_calls(forgotten=lambda client: None):
    return NumberedCalls(CallOrder({}), 8, deduplicated=lambda: None, forgotten=forgotten)


async def done():
    return Done()


async def refused(calls, begin, number=1):
    with pytest.raises(ServerError) as caught:
        await calls.call(CallId("ann", number), "x", begin)
    return caught.value


async def test_a_call_that_is_refused_at_the_door_may_be_tried_again_under_its_number():
    calls = make_calls()

    def begin():
        raise FULL

    assert (await refused(calls, begin)).reason is Reason.OVERLOADED
    assert await calls.call(CallId("ann", 1), "x", done) == Done()


async def test_a_call_that_had_begun_is_never_told_to_be_repeated_as_its_number_is_used_up():
    calls = make_calls()

    async def fails():
        raise FULL

    first = await refused(calls, fails)
    assert first.reason is Reason.NOT_DONE
    assert "no room" in first.message
    assert first.retry_after is None
    assert (await refused(calls, done)).reason is Reason.NOT_DONE  # the same reply again
    assert await calls.call(CallId("ann", 2), "x", done) == Done()


async def test_beyond_the_bound_the_client_that_was_here_longest_ago_is_forgotten(monkeypatch):
    monkeypatch.setattr(numbered_calls, "MAX_CLIENTS", 3)
    gone = []
    calls = make_calls(gone.append)
    for client in ("ann", "bob", "cyd"):
        await calls.call(CallId(client, 1), "x", done)
    waits = asyncio.Event()

    async def slow():
        await waits.wait()
        return Done()

    ann = asyncio.ensure_future(calls.call(CallId("ann", 2), "x", slow))
    await asyncio.sleep(0)
    await calls.call(CallId("dan", 1), "x", done)
    assert gone == ["bob"]  # ann waits for something, and was here later
    waits.set()
    await ann
    assert [kept.client for kept in calls.kept({"ann": 2, "cyd": 1, "dan": 1})] == ["cyd", "ann", "ann", "dan"]
    assert calls.order.last_begun("bob") == 0
