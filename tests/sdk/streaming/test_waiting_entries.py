"""Entries that wait for the connection: their timeouts go on, and what nobody waits for any more is not sent.

And what a session says of itself when it is opened: its rate, its length.
"""

import asyncio
import contextlib
import math
import time

import numpy as np
import pytest
import seqloom
from helpers.frames import noise
from helpers.real_server import until
from helpers.scripted_server import scripted_server
from seqloom.v1 import inference_service_pb2 as pb

WIDTH = 16_384  # four rows are an entry
BROAD = np.zeros((64, WIDTH), "f4")  # 4 MiB
AHEAD = 4  # sequences of that, more than a connection takes that nobody reads
TIMEOUT = 300.0


def waiting(client):
    """The numbers of the sessions whose entries wait."""
    return [entry.session.number for entry in client._connection.channel().shared._call._outbox]


@contextlib.asynccontextmanager
async def held_up():
    """A server that reads nothing more, and a client whose entries wait behind those of one call."""
    async with scripted_server(width=WIDTH) as server, seqloom.AsyncClient(server.address) as client:
        async with seqloom.AsyncClient(server.address) as knows:  # the model, so that no call below waits for it
            known = await knows._model_info("small", math.inf)
        client._model_infos["small"] = known
        server.reading.clear()
        first = asyncio.create_task(client.infer("small", [BROAD] * AHEAD, timeout=math.inf))
        await until(lambda: client._connection._channel and waiting(client).count(AHEAD) > 8)  # all that it can send
        yield server, client
        first.cancel()


def openings(server):
    """Each session's opening by its number, with when it came."""
    return {
        request.session: (request.open, at) for request, at in server.of(pb.SessionRequest) if request.HasField("open")
    }


async def test_a_timeout_is_what_is_left_when_the_entry_is_written():
    async with held_up() as (server, client):
        begun = time.monotonic()
        calls = [
            asyncio.create_task(client.infer("small", [BROAD[:rows]], timeout=TIMEOUT))
            for rows in (1, 9)  # the second in several entries
        ]
        calls.append(asyncio.create_task(client.infer("small", [BROAD[:1]], timeout=math.inf)))
        await until(lambda: AHEAD + 3 in waiting(client))
        made = time.monotonic()
        await asyncio.sleep(0.3)  # what they are to have waited for
        assert {AHEAD + 1, AHEAD + 2, AHEAD + 3} <= {*waiting(client)}
        released = time.monotonic()
        server.reading.set()
        await until(lambda: len(openings(server)) == AHEAD + 3)
        for number in (AHEAD + 1, AHEAD + 2):
            opening, came = openings(server)[number]
            assert begun + TIMEOUT - came <= opening.timeout_seconds <= made + TIMEOUT - released
        assert [openings(server)[number][0].timeout_seconds for number in (1, AHEAD + 3)] == [0, 0]
        for call in calls:
            call.cancel()


async def test_a_call_that_is_given_up_before_it_was_written_is_never_heard_of():
    async with held_up() as (server, client):
        for call in (
            client.infer("small", [BROAD[:1]], timeout=0.05),
            client.infer("small", [BROAD], timeout=0.05),
            client.stream("small", timeout=0.05).__aenter__(),
        ):
            with pytest.raises(seqloom.DeadlineExceeded) as caught:
                await call
            assert caught.value.reason == "TIMEOUT"
        cancelled = asyncio.create_task(client.infer("small", [BROAD[:1]]))
        await until(lambda: AHEAD + 4 in waiting(client))
        cancelled.cancel()
        last = asyncio.create_task(client.infer("small", [BROAD[:1]]))
        await until(lambda: AHEAD + 5 in waiting(client))
        server.reading.set()
        await until(lambda: AHEAD + 5 in openings(server))
        assert {request.session for request, _ in server.of(pb.SessionRequest)} == {1, 2, 3, 4, AHEAD + 5}
        last.cancel()


async def test_calls_that_are_given_up_while_nothing_can_be_written_keep_nothing():
    async with held_up() as (_, client):
        alive = len(waiting(client))
        for _ in range(20):
            calls = (client.infer("small", [BROAD[:1]], timeout=0.02) for _ in range(50))
            failed = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(each) for each in failed} == {seqloom.DeadlineExceeded}
        assert alive <= len(waiting(client)) <= 2 * (alive + 50) + 64


@pytest.mark.parametrize("kind", ["infer", "stream"])
async def test_an_entry_is_not_written_after_its_deadline_also_if_its_caller_could_not_be_told_yet(kind):
    async with scripted_server() as server, seqloom.AsyncClient(server.address) as client:
        before = asyncio.create_task(client.infer("small", [noise(3)]))
        await until(lambda: server.opened())
        late = asyncio.create_task(
            client.infer("small", [noise(400)], timeout=0.05)  # in several entries
            if kind == "infer"
            else client.stream("small", timeout=0.05).__aenter__()
        )
        await asyncio.sleep(0)  # it has made its entry, which is written when the loop comes round
        assert len(waiting(client)) == 1
        time.sleep(0.1)  # noqa: ASYNC251 - a program that holds up its event loop
        with pytest.raises(seqloom.DeadlineExceeded) as caught:
            await late
        assert caught.value.reason == "TIMEOUT"
        after = asyncio.create_task(client.infer("small", [noise(3)]))
        await until(lambda: len(server.opened()) == 2)
        assert {request.session for request, _ in server.of(pb.SessionRequest)} == {1, 3}
        before.cancel()
        after.cancel()


async def test_the_rest_of_a_sequence_is_not_written_after_its_deadline_and_its_session_is_dropped():
    async with scripted_server() as server, seqloom.AsyncClient(server.address) as client:
        late = asyncio.create_task(client.infer("small", [noise(100)], timeout=2.0))
        await until(lambda: server.opened())
        session = client._connection.channel().shared._call._sessions[1]
        assert session.sent == 64
        session.window = 128  # as if the server had just said so
        session.notify()
        await asyncio.sleep(0)
        assert len(waiting(client)) == 1
        time.sleep(max(0.0, session._deadline - time.monotonic()) + 0.01)  # noqa: ASYNC251 - a loop that is held up
        with pytest.raises(seqloom.DeadlineExceeded):
            await late
        await until(lambda: server.of(pb.SessionRequest)[-1][0].cancel)
        assert [request.HasField("frames") for request, _ in server.of(pb.SessionRequest)] == [True, False]


@pytest.mark.parametrize(("steps", "total"), [(1, 0), (64, 0), (65, 65), (1000, 1000)])
async def test_a_sequence_that_does_not_fit_in_its_first_entry_says_how_long_it_is(steps, total):
    async with scripted_server() as server, seqloom.AsyncClient(server.address) as client:
        call = asyncio.create_task(client.infer("small", [noise(steps)]))
        await until(lambda: server.opened())
        (opening,) = server.opened()
        assert (opening.total_steps, opening.whole_sequence) == (total, total > 0)
        call.cancel()


async def test_each_sequence_of_a_call_says_its_own_length():
    async with scripted_server() as server, seqloom.AsyncClient(server.address) as client:
        call = asyncio.create_task(client.infer("small", [noise(70), noise(3), noise(500)]))
        await until(lambda: len(server.opened()) == 3)
        assert [opening.total_steps for opening in server.opened()] == [70, 0, 500]
        call.cancel()


@pytest.mark.parametrize(("rate", "sent"), [({}, 0), ({"rate": None}, 0), ({"rate": 100}, 100), ({"rate": 0.5}, 0.5)])
async def test_a_stream_says_its_rate_and_neither_a_timeout_nor_a_length(rate, sent):
    opened = pb.SessionOpened(weights_version=1, window_steps=64)
    async with (
        scripted_server(lambda request: pb.SessionResponse(opened=opened)) as server,
        seqloom.AsyncClient(server.address) as client,
        client.stream("small", timeout=30, **rate),
    ):
        (opening,) = server.opened()
        assert opening.steps_per_second == sent
        # a timeout would count until the first frames have run, and these may come later
        assert (opening.timeout_seconds, opening.total_steps, opening.whole_sequence) == (0, 0, False)


async def test_the_blocking_client_says_the_rate_too():
    opened = pb.SessionOpened(weights_version=1, window_steps=64)
    async with scripted_server(lambda request: pb.SessionResponse(opened=opened)) as server:

        def run():
            with seqloom.Client(server.address) as client, client.stream("small", rate=62.5):
                pass

        await asyncio.to_thread(run)
        assert server.opened()[0].steps_per_second == 62.5


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf, "100", True, pytest.param(10**400, id="beyond all"), [1]])
async def test_a_rate_that_is_none_is_refused_by_its_name(served, rate):
    async with seqloom.AsyncClient(served.address) as client:
        with pytest.raises(seqloom.InvalidArgument, match=r"^rate: is .*: expected a finite number above 0$"):
            await client.stream("small", rate=rate).__aenter__()


async def test_a_stream_with_a_rate_is_served_like_any_other(served):
    x = noise(20)
    async with seqloom.AsyncClient(served.address) as client, client.stream("small", rate=1e4) as stream:
        await stream.send(x)
        assert (await stream.receive()).outputs.shape == (20, 3)
