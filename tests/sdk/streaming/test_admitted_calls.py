"""What counts as accepted for the throttle: a call whose sequences were all admitted, at once and however it ends."""

import asyncio

import pytest
import seqloom
from google.rpc import code_pb2, status_pb2
from helpers.admitting_script import Script
from helpers.frames import noise
from helpers.real_server import until
from helpers.scripted_server import refusal, scripted_server

X = noise(6)


def counted(client):
    """How many calls the throttle of a client is told of from now on."""
    throttle = client._connection.channel().shared.throttle("small")
    counts = {"accepted": 0, "refused": 0}
    for name in counts:
        method = getattr(throttle, name)

        def count(*arguments, name=name, method=method):
            counts[name] += 1
            method(*arguments)

        setattr(throttle, name, count)
    return counts


@pytest.fixture
async def script():
    return Script()


@pytest.fixture
async def server(script):
    async with scripted_server(script) as one:
        yield one


@pytest.fixture
async def client(server):
    async with seqloom.AsyncClient(server.address, timeout=60, retries=0) as one:
        await one.infer("small", [X])
        yield one


async def test_calls_that_were_admitted_and_failed_then_were_not_refused():
    """Three of four come too late: were they not counted as accepted, most would be kept."""
    number = 0

    def answer(entry):
        nonlocal number
        if not entry.HasField("open"):
            return None
        number += 1
        return refusal(0.01) if number % 4 == 0 else status_pb2.Status(code=code_pb2.DEADLINE_EXCEEDED)

    async with (
        scripted_server(answer) as server,
        seqloom.AsyncClient(server.address, timeout=60, retries=0) as client,
    ):
        for _ in range(200):
            with pytest.raises((seqloom.Overloaded, seqloom.DeadlineExceeded)):
                await client.infer("small", [X])
        assert len(server.opened()) > 190


@pytest.mark.parametrize("sequences", [1, 3])
async def test_a_call_counts_once_as_soon_as_all_its_sequences_are_admitted(client, script, server, sequences):
    counts = counted(client)
    script.ends = False
    call = asyncio.ensure_future(client.infer("small", [X] * sequences))
    await until(lambda: counts["accepted"])
    assert not call.done()
    call.cancel()
    await asyncio.wait([call])
    script.ends = True
    await client.infer("small", [X] * sequences)
    assert counts == {"accepted": 2, "refused": 0}


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_a_call_of_which_one_sequence_is_refused_is_refused(client, script, which):
    counts = counted(client)
    order = iter(range(3))
    script.refuse = lambda opening: next(order) == which
    with pytest.raises(seqloom.Overloaded):
        await client.infer("small", [X] * 3)
    assert counts == {"accepted": 0, "refused": 1}


async def test_a_call_that_was_never_answered_does_not_count(client, script):
    counts = counted(client)
    script.silent = True
    with pytest.raises(seqloom.DeadlineExceeded):
        await client.infer("small", [X], timeout=0.1)
    assert counts == {"accepted": 0, "refused": 0}
