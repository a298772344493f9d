"""A server that vanished without a word, behind a proxy that still takes every byte: the client notices."""

import asyncio

import numpy as np
import seqloom
from helpers.breaking_proxy import proxy_of
from helpers.real_server import until
from seqloom import _config

X = np.ones((3, 5), "f4")


async def test_a_call_is_made_again_soon_after_its_server_has_vanished(served, monkeypatch):
    monkeypatch.setattr(_config, "_MIN_KEEPALIVE", 1.0)
    monkeypatch.setattr(_config, "_KEEPALIVE_TIMEOUT", 1.0)
    async with proxy_of(served.address) as proxy, seqloom.AsyncClient(proxy.address, keepalive=1) as client:
        assert len((await client.infer("small", [X])).outputs[0]) == 3
        proxy.open.clear()
        again = asyncio.create_task(client.infer("small", [X], timeout=300))
        async with asyncio.timeout(20):  # by itself gRPC waits for a minute
            await until(lambda: proxy.connections == 2)
        proxy.open.set()
        assert len((await again).outputs[0]) == 3
