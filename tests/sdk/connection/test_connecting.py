"""How a client connects: at the first try over a slow link, and soon after a server has come back."""

import asyncio
import time

import pytest
import seqloom
from helpers.breaking_proxy import proxy_of
from helpers.frames import noise
from helpers.scripted_server import scripted_server
from seqloom.v1 import model_service_pb2


@pytest.mark.parametrize("round_trip", [0.1, 0.3, 0.6])
async def test_a_slow_link_connects_at_the_first_try(served, round_trip):
    async with (
        proxy_of(served.address) as proxy,
        seqloom.AsyncClient(proxy.address, timeout=60, retries=0) as client,
    ):
        proxy.delay = round_trip / 2
        result = await client.infer("small", [noise(6)])
        assert len(result.outputs[0]) == 6
        assert proxy.connections == 1


async def test_a_server_that_has_come_back_is_found_within_the_pause_between_two_tries():
    def answer(request):
        return model_service_pb2.ListModelsResponse()

    async with scripted_server(answer) as server:
        address = server.address
    async with seqloom.AsyncClient(address, timeout=60, retries=0) as client:
        for _ in range(3):  # by then the pause of the connection has grown
            with pytest.raises(seqloom.Unavailable):
                await client.models()
            await asyncio.sleep(0.3)
        async with scripted_server(answer, address=address):
            begun = time.monotonic()
            while True:
                try:
                    await client.models()
                    break
                except seqloom.Unavailable:
                    await asyncio.sleep(0.01)
            assert time.monotonic() - begun < 2.0 * 1.2 + 1  # MAX_BACKOFF with gRPC's jitter, and a slow machine
