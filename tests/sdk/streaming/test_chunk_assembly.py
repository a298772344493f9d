"""A session as the SDK keeps it: however a server cuts and joins outputs, each chunk that was sent gets its own.

The server here is a model of the protocol, echo.Echo.
"""

import asyncio
import math
import time

import numpy as np
import pytest
import seqloom
from helpers.echo import Echo
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom._streaming.live_session import LiveSession
from seqloom._streaming.whole_session import WholeSession
from seqloom.v1 import inference_service_pb2 as pb

WINDOW = 16


def make(window=WINDOW, **more):
    echo = Echo(window)
    return echo, LiveSession(echo, 1, window, **more)


def frames_of(lengths):
    numbers = np.arange(sum(lengths), dtype="f4")[:, None]
    ends = np.cumsum(lengths)
    return [numbers[end - length : end] for length, end in zip(lengths, ends, strict=True)]


def check(chunks, sent):
    assert len(chunks) == len(sent)
    first = 0
    for chunk, frames in zip(chunks, sent, strict=True):
        assert chunk.first_step == first
        np.testing.assert_array_equal(chunk.outputs, frames)
        first += len(frames)


async def settle():
    """Lets everything that can go on go on."""
    for _ in range(5):
        await asyncio.sleep(0)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3 * WINDOW), min_size=1, max_size=8), st.data())
def test_each_chunk_gets_its_own_outputs_however_the_server_cuts_them(lengths, data):
    sent, received = frames_of(lengths), []

    async def send(session):
        for frames in sent:
            await session.send(frames, math.inf)
        await session.end(math.inf)

    async def scenario():
        echo, session = make()
        sending = asyncio.create_task(send(session))
        while not session.exhausted:
            await settle()
            choices = [choice for choice, there in (("reply", echo.rows), ("receive", session.ready)) if there]
            assert choices, "neither the server nor the caller can go on"
            if data.draw(st.sampled_from(choices)) == "reply":
                session.take(echo.reply(data.draw(st.integers(1, 2 * WINDOW))))
            else:
                received.append(session.receive())
            if echo.ending and not echo.rows and session.final_state is None:  # it ended after the last answer
                session.take(echo.end())
        await sending

    asyncio.run(scenario())
    check(received, sent)


@settings(deadline=None)
@given(st.integers(1, 5 * WINDOW), st.data())
def test_a_whole_sequence_is_one_array_however_it_was_cut(length, data):
    (frames,) = frames_of([length])

    async def scenario():
        echo = Echo(WINDOW)
        session = WholeSession(echo, 1, WINDOW, frames, math.inf)
        session.open(pb.OpenSession())
        feeding = asyncio.create_task(session.send_rest())
        while session.final_state is None:
            await settle()
            session.take(echo.reply(data.draw(st.integers(1, 2 * WINDOW))))
        await feeding
        return session.receive()

    check([asyncio.run(scenario())], [frames])


@settings(deadline=None)
@given(st.integers(1, 4 * WINDOW), st.integers(0, WINDOW))
def test_a_large_chunk_that_found_no_room_in_time_is_as_long_as_what_was_sent(too_many, answered):
    (frames,) = frames_of([WINDOW + answered + too_many])

    async def scenario():
        echo, session = make()
        sending = asyncio.create_task(session.send(frames, time.monotonic() + 0.01))
        await settle()
        if answered:
            session.take(echo.reply(answered))
        with pytest.raises(seqloom.DeadlineExceeded) as caught:
            await sending
        assert caught.value.reason == "WINDOW_FULL"
        while echo.rows:
            session.take(echo.reply(3))
        return session.sent, session.receive()

    sent, chunk = asyncio.run(scenario())
    assert WINDOW <= sent <= WINDOW + answered
    check([chunk], [frames[:sent]])


def test_a_failure_comes_after_what_was_there_before_it():
    async def scenario():
        echo, session = make()
        await session.send(np.ones((3, 1), "f4"), math.inf)
        await session.send(np.ones((2, 1), "f4"), math.inf)
        session.take(echo.reply(4))
        session.fail(seqloom.Unavailable("gone"))
        assert session.ready
        assert len(session.receive()) == 3
        assert not session.ready
        for waiting in (session.wait(lambda: session.ready, math.inf), session.send(np.ones((1, 1), "f4"), math.inf)):
            with pytest.raises(seqloom.Unavailable):
                await waiting

    asyncio.run(scenario())
