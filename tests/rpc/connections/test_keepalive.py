"""Connections whose other end is gone without a word, and clients that ping: what the server closes, and what not."""

import asyncio
import itertools

import numpy as np
import pytest
import seqloom
from helpers.breaking_proxy import proxy_of
from helpers.raw_calls import Sessions
from helpers.raw_http2 import PING, RawConnection, frame
from helpers.real_server import open_channel, until

X = [np.ones((3, 5), "f4")]


async def test_a_client_that_vanished_behind_a_proxy_is_noticed_and_its_sessions_end(serve):
    """The proxy still acknowledges every byte, as load balancers do: only the answer to a ping tells."""
    async with (
        serve(keepalive_seconds=0.5, keepalive_timeout_seconds=0.5) as served,
        proxy_of(served.address) as proxy,
        open_channel(proxy.address) as channel,
        seqloom.AsyncClient(served.address) as other,
    ):
        await Sessions(channel).open(1)
        await asyncio.sleep(2)  # pings that are answered
        assert served.value("active_streams") == 1
        proxy.open.clear()
        proxy.reading.clear()
        async with asyncio.timeout(20):  # by itself gRPC waits for a minute
            await until(lambda: served.value("active_streams") == 0)
        assert len((await other.infer("small", X)).outputs[0]) == 3


async def test_a_flood_of_pings_is_cut_off_and_an_ordinary_client_works_on(served):
    numbers = itertools.count()

    def flood():
        with RawConnection(served.address) as raw:
            while not raw.closed.wait(0.01):
                try:
                    raw.send(frame(PING, 0, 0, next(numbers).to_bytes(8, "big")))
                except OSError:
                    break
            assert raw.closed.wait(60)
            return raw.goaway

    async with seqloom.AsyncClient(served.address) as client:
        flooding = asyncio.create_task(asyncio.to_thread(flood))
        while not flooding.done():
            assert len((await client.infer("small", X)).outputs[0]) == 3
        assert await flooding == b"too_many_pings"


@pytest.mark.slow
async def test_the_pings_of_a_client_are_taken_and_a_server_that_vanished_is_noticed(serve):
    """With nothing but pings every 10 s, and the times that the SDK really has."""
    async with (
        serve(keepalive_seconds=3600.0) as served,
        proxy_of(served.address) as proxy,
        seqloom.AsyncClient(proxy.address, keepalive=10) as client,
    ):
        async with client.stream("small") as stream:
            await stream.send(X[0])
            assert len((await stream.receive()).outputs) == 3
            await asyncio.sleep(45)  # more pings than the server takes of a flood
            assert proxy.connections == 1
            await stream.send(X[0])
            assert len((await stream.receive()).outputs) == 3
        proxy.open.clear()
        proxy.reading.clear()
        again = asyncio.create_task(client.infer("small", X, timeout=300))
        async with asyncio.timeout(40):  # 10 s without traffic and 10 s for the answer
            await until(lambda: proxy.connections == 2)
        proxy.open.set()
        proxy.reading.set()
        assert len((await again).outputs[0]) == 3
