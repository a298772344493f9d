"""A server that refuses what it cannot do: clients come again no sooner than told, and seldom enough."""

import asyncio
import contextlib
import gc
import itertools
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import seqloom
from google.rpc import code_pb2, status_pb2
from helpers.admitting_script import Script
from helpers.frames import noise
from helpers.scripted_server import refusal, scripted_server
from seqloom._streaming import throttle
from seqloom.v1 import inference_service_pb2 as pb
from seqloom.v1 import model_service_pb2, training_service_pb2

X = noise(6)
TOLD = 0.4  # seconds, longer than the first pauses

CALLS = {
    "infer": (pb.SessionRequest, lambda client: client.infer("small", [X])),
    "stream": (pb.SessionRequest, lambda client: client.stream("small").__aenter__()),
    "a stream with a rate": (pb.SessionRequest, lambda client: client.stream("small", rate=100).__aenter__()),
    "gradients": (
        training_service_pb2.ComputeGradientsRequest,
        lambda client: client.gradients("small", [X], [np.zeros(len(X), int)]),
    ),
    "models": (model_service_pb2.ListModelsRequest, lambda client: client.models()),
    "load_model": (model_service_pb2.LoadModelRequest, lambda client: client.load_model("small")),
}


async def outcomes(calls):
    return await asyncio.gather(*calls, return_exceptions=True)


def attempts(server, kind):
    found = server.of(kind)
    return [at for request, at in found if kind is not pb.SessionRequest or request.HasField("open")]


@pytest.mark.parametrize("name", CALLS)
async def test_calls_that_are_all_refused_are_repeated_ten_times_and_once_more_for_every_ten(name):
    kind, call = CALLS[name]
    async with (
        scripted_server(lambda request: refusal(0.001)) as server,
        seqloom.AsyncClient(server.address, timeout=60) as client,
    ):
        burst = await outcomes(call(client) for _ in range(50))
        sent = len(attempts(server, kind))
        # 10 is all that is there at once; of whole sequences the client itself refuses 50 in 51, as all were refused
        assert 50 <= sent <= 50 + 5 if name == "infer" else sent == 50 + 10
        errors = burst + list(itertools.chain(*[await outcomes([call(client)]) for _ in range(40)]))
        sent = len(attempts(server, kind))
        assert 50 <= sent <= 50 + 10 if name == "infer" else 90 + 10 < sent <= 90 + 10 + 9
        assert {type(error) for error in errors} == {seqloom.Overloaded}
        assert {error.retry_after for error in errors} == {0.001}


@pytest.mark.parametrize("name", CALLS)
async def test_a_refused_call_comes_no_sooner_than_told(name):
    kind, call = CALLS[name]
    async with (
        scripted_server(lambda request: refusal(TOLD)) as server,
        seqloom.AsyncClient(server.address, timeout=60, retries=2) as client,
    ):
        await client.model("small")  # it is connected: connecting again would be one of the retries
        with pytest.raises(seqloom.Overloaded) as caught:
            await call(client)
        assert caught.value.retry_after == pytest.approx(TOLD)
        times = attempts(server, kind)
        assert len(times) == 3
        for before, after in itertools.pairwise(times):
            assert after - before >= TOLD


async def test_one_that_comes_again_at_once_lets_others_have_their_turns():
    async with (
        scripted_server(lambda request: refusal(0.001)) as server,
        seqloom.AsyncClient(server.address, timeout=60, retries=0) as client,
    ):
        turns = 0

        async def other():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        for _ in range(200):
            before = turns
            with pytest.raises(seqloom.Overloaded):
                await client.infer("small", [X])
            assert turns > before
        task.cancel()
        assert len(server.opened()) < 100  # most were refused by the client


@pytest.mark.parametrize("retries", [0, 5])
async def test_a_hasty_caller_does_not_keep_the_calls_of_patient_ones(retries):
    """The server refuses what would be late: a refused call says nothing about one that has more time."""
    script = Script()
    script.refuse = lambda opening: opening.timeout_seconds < 1
    async with (
        scripted_server(script) as server,
        seqloom.AsyncClient(server.address, timeout=60, retries=retries) as client,
    ):
        hasty, patient = [], []
        for _ in range(20):
            hasty += [asyncio.ensure_future(client.infer("small", [X], timeout=0.5)) for _ in range(15)]
            patient.append(asyncio.ensure_future(client.infer("small", [X], timeout=30)))
            await asyncio.sleep(0.02)
        assert not [end for end in await outcomes(patient) if isinstance(end, Exception)]
        assert {type(end) for end in await outcomes(hasty)} == {seqloom.Overloaded}
        assert sum(opening.timeout_seconds < 1 for opening in server.opened()) < 100  # most were kept


async def test_calls_that_are_not_sent_end_at_once_and_take_nothing_of_the_budget(monkeypatch):
    async with scripted_server() as server, seqloom.AsyncClient(server.address, timeout=60) as client:
        await client.model("small")
        kept_back = client._connection.channel().shared.throttle("small")
        for _ in range(200):
            kept_back.refused(seqloom.Overloaded("busy", retry_after=5.0), 60, len(X))
        kept_back.check(60, len(X))  # which is sent, as none was for a second
        monkeypatch.setattr(throttle, "random", SimpleNamespace(random=lambda: 0.0))  # for which none other is
        begun = time.monotonic()
        ends = await outcomes(client.infer("small", [X]) for _ in range(50))
        assert time.monotonic() - begun < 1.0
        assert {(type(end), end.sent, end.retry_after) for end in ends} == {(seqloom.Overloaded, False, 5.0)}
        assert server.opened() == []
        budget = client._connection.retry_budget
        assert sum(budget.take() for _ in range(20)) == 10


async def test_nothing_is_kept_of_a_call_that_was_refused():
    async with (
        scripted_server(lambda request: refusal(0.001)) as server,
        seqloom.AsyncClient(server.address, timeout=60, retries=0) as client,
    ):
        frames = X.astype("f4")  # which is not copied
        kept = weakref.ref(frames)
        with contextlib.suppress(seqloom.Overloaded):
            await client.infer("small", [frames])
        del frames
        gc.collect()
        assert kept() is None


async def test_a_call_that_would_come_too_late_is_not_repeated():
    async with (
        scripted_server(lambda request: refusal(60)) as server,
        seqloom.AsyncClient(server.address, timeout=30) as client,
    ):
        with pytest.raises(seqloom.Overloaded) as caught:
            await client.infer("small", [X])
        assert caught.value.retry_after == 60
        assert len(server.opened()) == 1


async def test_coming_back_to_a_server_that_was_not_there_takes_nothing_of_the_budget():
    asked = itertools.count()

    def answer(request):
        gone = next(asked) < 30
        return status_pb2.Status(code=code_pb2.UNAVAILABLE) if gone else model_service_pb2.ListModelsResponse()

    async with scripted_server(answer) as server, seqloom.AsyncClient(server.address, timeout=60) as client:
        assert await asyncio.gather(*(client.models() for _ in range(30))) == [[]] * 30
