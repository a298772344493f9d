"""While a server refuses calls, the frames of a large whole sequence are written only once it has been admitted."""

import asyncio
import gc
import time
from types import SimpleNamespace

import numpy as np
import pytest
import seqloom
from helpers.admitting_script import Script
from helpers.breaking_proxy import proxy_of
from helpers.frames import noise
from helpers.real_server import until
from helpers.scripted_server import scripted_server
from seqloom import tensors
from seqloom._streaming import throttle
from seqloom.v1 import inference_service_pb2 as pb

WIDTH = 1024  # 4 KiB a step: one is written at once, two are not
SMALL, LARGE = noise(1, WIDTH), noise(30, WIDTH)


@pytest.fixture
async def script():
    return Script()


@pytest.fixture
async def server(script):
    async with scripted_server(script, WIDTH) as one:
        yield one


@pytest.fixture
async def client(server):
    """A client of `server` that repeats nothing, and was answered once."""
    async with seqloom.AsyncClient(server.address, timeout=60, retries=0) as one:
        await one.infer("small", [SMALL])
        server.requests.clear()
        yield one


async def be_refused(client, script, server):
    script.refuses = 1
    with pytest.raises(seqloom.Overloaded):
        await client.infer("small", [SMALL])
    server.requests.clear()


def entries(server):
    return [request for request, _ in server.of(pb.SessionRequest)]


def asked(server):
    """Whether each session was opened without frames."""
    return [not entry.HasField("frames") for entry in entries(server) if entry.HasField("open")]


async def test_after_a_refusal_a_large_sequence_is_opened_without_frames_and_says_its_length(client, script, server):
    await client.infer("small", [LARGE])
    assert asked(server) == [False]
    assert server.opened()[0].total_steps == 0
    await be_refused(client, script, server)
    result = await client.infer("small", [LARGE])
    assert result.outputs[0].shape == (30, 3)
    opening, *rest = entries(server)
    assert opening.open.whole_sequence
    assert opening.open.total_steps == 30
    assert opening.open.timeout_seconds > 0
    assert not opening.HasField("frames")
    assert not opening.end
    np.testing.assert_array_equal(tensors.decode(rest[0].frames), LARGE.astype("f4"))
    assert [entry.end for entry in rest] == [True]


@pytest.mark.parametrize(
    ("xs", "asks"),
    [([SMALL], False), ([noise(2, WIDTH)], True), ([SMALL, SMALL], True), ([LARGE, SMALL], True)],
    ids=["4 KiB", "more", "two with more", "a large and a small one"],
)
async def test_what_is_small_goes_at_once(client, script, server, xs, asks):
    await be_refused(client, script, server)
    assert [len(outputs) for outputs in (await client.infer("small", xs)).outputs] == [len(x) for x in xs]
    assert asked(server) == [asks] * len(xs)


async def test_a_second_without_refusals_ends_it(client, script, server, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(throttle, "time", SimpleNamespace(monotonic=lambda: now))
    await be_refused(client, script, server)
    for seconds in (0.9, 0.2):
        now += seconds
        await client.infer("small", [LARGE])
    assert asked(server) == [True, False]


async def test_what_is_refused_when_asked_was_never_written(client, script, server):
    await be_refused(client, script, server)
    script.refuses = 1
    with pytest.raises(seqloom.Overloaded) as caught:
        await client.infer("small", [LARGE])
    assert caught.value.retry_after == 0.001
    await client.infer("small", [SMALL])  # so that all that was written before has come
    assert [entry.HasField("frames") for entry in entries(server)] == [False, True]


async def test_a_timeout_while_it_asks_is_deadline_exceeded_and_the_server_is_told(client, script, server):
    await be_refused(client, script, server)
    script.silent = True
    with pytest.raises(seqloom.DeadlineExceeded) as caught:
        await client.infer("small", [LARGE], timeout=0.2)
    assert caught.value.reason == "TIMEOUT"
    await until(lambda: len(entries(server)) == 2)
    assert [(entry.cancel, entry.HasField("frames")) for entry in entries(server)] == [(False, False), (True, False)]


async def test_a_connection_that_breaks_while_it_asks_is_made_again_and_asks_again(script, server):
    async with (
        proxy_of(server.address) as proxy,
        seqloom.AsyncClient(proxy.address, timeout=60) as client,
        seqloom.AsyncClient(proxy.address, timeout=60, retries=0) as without,
    ):
        for each in (client, without):
            await each.infer("small", [SMALL])
            throttle_ = each._connection.channel().shared.throttle("small")
            throttle_.refused(seqloom.Overloaded("busy", retry_after=60), 60, 1)
        server.requests.clear()
        script.silent = True
        calls = [asyncio.ensure_future(each.infer("small", [LARGE])) for each in (client, without)]
        await until(lambda: len(server.opened()) == 2)
        script.silent = False
        proxy.cut()
        result, error = await asyncio.gather(*calls, return_exceptions=True)
        assert result.outputs[0].shape == (30, 3)
        assert isinstance(error, seqloom.Unavailable)
        assert asked(server) == [True, True, True]
        assert sum(entry.HasField("frames") for entry in entries(server)) == 1


@pytest.fixture
async def left():
    """Functions that tell what tasks are left over since, and what the event loop was told of that nobody awaited."""
    loop, told = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda loop, context: told.append(context))
    return SimpleNamespace(told=told, tasks=lambda before: asyncio.all_tasks() - before)


async def test_a_call_that_is_cancelled_while_it_asks_leaves_nothing(client, script, server, left):
    await be_refused(client, script, server)
    before = asyncio.all_tasks()
    script.silent = True
    for xs in ([LARGE], [LARGE, LARGE, SMALL]):
        server.requests.clear()
        call = asyncio.ensure_future(client.infer("small", xs))
        await until(lambda xs=xs: len(server.opened()) == len(xs))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda xs=xs: sum(entry.cancel for entry in entries(server)) == len(xs))
        assert not any(entry.HasField("frames") for entry in entries(server))
        assert not left.tasks(before | {call})
    del call
    gc.collect()
    assert left.told == []


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_of_several_sequences_one_that_is_refused_ends_all_and_leaves_nothing(
    client, script, server, left, which
):
    await be_refused(client, script, server)
    before = asyncio.all_tasks()
    xs = [noise(10 + i, WIDTH) for i in range(3)]
    script.refuse = lambda opening: opening.total_steps == 10 + which
    for _ in range(10):  # fewer than the throttle minds
        with pytest.raises(seqloom.Overloaded):
            await client.infer("small", xs)
    await client.infer("small", [SMALL])
    await until(lambda: not left.tasks(before))
    gc.collect()
    assert left.told == []
    numbers = {entry.session for entry in entries(server) if entry.open.total_steps == 10 + which}
    assert not any(entry.HasField("frames") for entry in entries(server) if entry.session in numbers)
    assert len(client._connection.channel().shared._call._sessions) == 0
