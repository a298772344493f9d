"""A server in a process of its own that is offered more than it can do: what callers get, and what others do."""

import asyncio
import collections

import numpy as np
import pytest
import seqloom
from helpers.expected_outputs import CLOSE
from helpers.frames import noise
from helpers.plain_twin import plain_outputs
from helpers.real_server import write_models
from seqloom_server.nn.spec import ModelSpec

WIDTH = 100
RECORDING = noise(1500, WIDTH, dtype="f4")  # 300 of them are some 300 billion operations, and there is one core
SHORT = noise(20, WIDTH, seed=1, dtype="f4")
BURST = 300


@pytest.fixture
def networks(tmp_path):
    return write_models(tmp_path / "models", {"m": ModelSpec("elman", WIDTH, 512, 40)})


@pytest.fixture
def server(server_process, networks, tmp_path):
    return server_process("--models", tmp_path / "models")


async def outcome(call):
    """The name of what a call raises, or "ok"."""
    try:
        await call
    except Exception as error:
        return type(error).__name__
    return "ok"


async def flood(client):
    """A call a caller, all at once, each of which is more than its share of a second."""
    calls = (outcome(client.infer("m", [RECORDING], timeout=1)) for _ in range(BURST))
    return collections.Counter(await asyncio.gather(*calls))


async def test_of_a_burst_every_call_is_answered_or_told_so_and_a_later_one_is_served(server, networks):
    async with (
        seqloom.AsyncClient(server.address, timeout=60) as client,
        seqloom.AsyncClient(server.address, timeout=60, retries=0) as lone,
    ):
        for each in (client, lone):
            await each.infer("m", [SHORT])
        for each in (client, lone):
            ends = await flood(each)
            assert ends.keys() <= {"ok", "Overloaded", "DeadlineExceeded"}
            assert ends["ok"] > 0
            assert ends["Overloaded"] > 0
            assert ends["DeadlineExceeded"] <= BURST / 3  # before, it was nearly all of them
        await asyncio.sleep(1.0)  # for which the last refusals count, with the client as well
        result = await lone.infer("m", [SHORT])
        expected = plain_outputs(networks["m"], SHORT)[1]
        np.testing.assert_allclose(result.outputs[0], expected, **CLOSE)


async def test_a_modest_client_beside_a_flood_gets_all_its_calls_answered(server):
    async with (
        seqloom.AsyncClient(server.address, timeout=60) as flooding,
        seqloom.AsyncClient(server.address, timeout=60, retries=0) as modest,
    ):
        for each in (flooding, modest):
            await each.infer("m", [SHORT])
        done = asyncio.Event()

        async def flood_on():
            ends = collections.Counter()
            while not done.is_set():
                ends[await outcome(flooding.infer("m", [RECORDING], timeout=1))] += 1
            return ends

        flooded = [asyncio.ensure_future(flood_on()) for _ in range(BURST)]
        answers = collections.Counter()
        for _ in range(30):
            answers[await outcome(modest.infer("m", [SHORT], timeout=1))] += 1  # as the flood
            await asyncio.sleep(0.05)
        done.set()
        ends = sum(await asyncio.gather(*flooded), collections.Counter())
        assert answers == {"ok": 30}
        assert ends["Overloaded"] > ends["ok"]  # there was more than could be done
