"""Streams that say their rate: what they give, and what is refused when there would be too many."""

import asyncio
import contextlib

import numpy as np
import pytest
import seqloom
from helpers.expected_outputs import CLOSE
from helpers.frames import cut, noise
from helpers.real_server import until

X = noise(40)
BUSY = 1e9  # frames a second, more than any machine does


def outputs_of(chunks):
    return np.concatenate([chunk.outputs for chunk in chunks])


async def test_a_stream_with_a_rate_gives_what_one_without_gives(served, client):
    outputs = []
    for rate in (None, 100, 0.5):
        async with client.stream("small", rate=rate, timeout=60) as stream:
            outputs.append(outputs_of([chunk async for chunk in stream.run(cut(X, [1, 7, 3, 20]))]))
            state = await stream.finish()
            assert state.hidden.shape == (1, 1, 7)
    for each in outputs:
        np.testing.assert_allclose(each, served.expected("small", X)[0], **CLOSE)


async def test_over_the_limit_a_stream_is_refused_when_it_is_opened(served, client):
    async with seqloom.AsyncClient(served.address, timeout=60, retries=0) as once:
        with pytest.raises(seqloom.Overloaded) as caught:
            await once.stream("small", rate=BUSY).__aenter__()
        assert caught.value.retry_after > 0
        assert caught.value.reason == "OVERLOADED"
        async with once.stream("small") as stream:  # one without takes what is left
            await stream.send(X[:3])
            assert len((await stream.receive()).outputs) == 3


async def test_one_that_is_refused_is_opened_by_a_repeat_once_others_have_ended(served, client):
    rate = 1.0
    async with seqloom.AsyncClient(served.address, timeout=60, retries=0) as once:
        with pytest.raises(seqloom.Overloaded):  # noqa: PT012 - which one is too many is the machine's
            while True:
                rate *= 2
                async with once.stream("small", rate=rate):
                    pass
        rate /= 8  # of which there is room for a few
        async with contextlib.AsyncExitStack() as held:
            with pytest.raises(seqloom.Overloaded):  # noqa: PT012
                while True:
                    await held.enter_async_context(once.stream("small", rate=rate))
            before = served.value("rejected_total")
            opening = asyncio.ensure_future(client.stream("small", rate=rate).__aenter__())
            await until(lambda: served.value("rejected_total") > before)
            assert not opening.done()
        stream = await opening
        await stream.send(X[:3])
        np.testing.assert_allclose((await stream.receive()).outputs, served.expected("small", X[:3])[0], **CLOSE)
        await stream.finish()


async def test_one_that_stays_refused_is_repeated_as_often_as_the_client_may(served):
    async with seqloom.AsyncClient(served.address, timeout=60, retries=1) as twice:
        before = served.value("rejected_total")
        opened = (twice.stream("small", rate=BUSY).__aenter__() for _ in range(15))
        ends = await asyncio.gather(*opened, return_exceptions=True)
        assert {type(end) for end in ends} == {seqloom.Overloaded}
        assert served.value("rejected_total") - before == 15 + 10  # what may be saved up for repeats


async def test_an_opening_that_is_cancelled_while_the_answer_arrives_leaves_nothing_open(served, client):
    async with client.stream("small"):
        sessions = client._connection.channel().shared._call._sessions
    opening = asyncio.ensure_future(client.stream("small", rate=1.0).__aenter__())
    while not any(session.weights_version for session in sessions.values()):
        assert not opening.done()
        await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await until(lambda: served.engine.open_sessions == 0)
    assert not sessions
