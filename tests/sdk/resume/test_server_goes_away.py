"""A server that shuts down: streams and groups hear of it at once, and go on at the next server of its address."""

import asyncio
import signal

import numpy as np
import pytest
import seqloom
from helpers.expected_outputs import CLOSE, assert_state
from helpers.frames import cut, noise
from helpers.plain_group import PlainGroup
from helpers.plain_twin import plain_outputs
from helpers.real_server import SMALL, until, write_models

LONG = "600"  # seconds of grace: whoever waits for that fails this test


async def test_streams_and_groups_move_to_the_next_server_and_lose_nothing(server_process, tmp_path):
    networks = write_models(tmp_path, {"small": SMALL})
    started = await asyncio.to_thread(server_process, "--models", tmp_path, "--grace-seconds", LONG)
    environment = {"SEQLOOM_LISTEN": started.address}
    over = asyncio.Event()

    async def stream(client, i, *, pipelined):
        chunks, x = [], noise(20_000, seed=i)

        async def frames():
            for part in cut(x, [5] * 4000):
                if over.is_set():
                    return
                yield part
                await asyncio.sleep(0.005)

        async with client.stream("small") as stream:
            if pipelined:
                chunks = [chunk async for chunk in stream.run(frames())]
            else:
                async for part in frames():
                    await stream.send(part)
                    chunks.append(await stream.receive())
            final = await stream.finish()
        _, expected, state = plain_outputs(networks["small"], x[: 5 * len(chunks)])
        assert [chunk.first_step for chunk in chunks] == list(range(0, 5 * len(chunks), 5))
        np.testing.assert_allclose(np.concatenate([chunk.outputs for chunk in chunks]), expected, **CLOSE)
        assert_state(final, state, **CLOSE)

    async def group(client):
        plain, i = PlainGroup(networks["small"], 20), 0
        async with client.stream_group("small", 20) as group:
            while not over.is_set():
                x = np.stack([noise(2, seed=30 * i + n) for n in range(20)])
                np.testing.assert_allclose((await group.step(x)).outputs, plain.run(range(20), x), **CLOSE)
                i += 1
            assert_state(await group.finish(), plain.states, **CLOSE)

    async with seqloom.AsyncClient(started.address, timeout=60) as client, client.stream("small") as silent:
        users = [asyncio.create_task(stream(client, i, pipelined=i % 2 == 0)) for i in range(6)]
        users.append(asyncio.create_task(group(client)))
        await silent.send(noise(7))
        first = await silent.receive()
        await asyncio.sleep(0.2)
        for _ in range(2):
            status, stderr = await asyncio.to_thread(started.end, signal.SIGTERM)
            assert status == 0, stderr
            started = await asyncio.to_thread(
                lambda: server_process("--models", tmp_path, "--grace-seconds", LONG, environment=environment)
            )
            await asyncio.sleep(0.2)
        over.set()
        await asyncio.gather(*users)
        await silent.send(noise(9)[7:])
        second = await silent.receive()
        assert (first.first_step, second.first_step) == (0, 7)
        expected = plain_outputs(networks["small"], np.concatenate([noise(7), noise(9)[7:]]))[1]
        np.testing.assert_allclose(np.concatenate([first.outputs, second.outputs]), expected, **CLOSE)


async def test_a_stream_that_is_not_resumed_is_served_for_the_grace_period(served, client):
    x = noise(12)
    async with client.stream("small", resume=False) as stream, client.stream("small", resume=False) as never_ended:
        await stream.send(x[:5])
        first = await stream.receive()
        stopping = asyncio.ensure_future(served.server.stop(1))
        await until(lambda: not served.server._serving)
        await stream.send(x[5:])
        second = await stream.receive()
        np.testing.assert_allclose(
            np.concatenate([first.outputs, second.outputs]), served.expected("small", x)[0], **CLOSE
        )
        await stream.finish()
        assert stream.snapshot is None or stream.snapshot.steps == 5
        await stopping
        with pytest.raises(seqloom.StreamLost) as caught:
            await never_ended.receive()
        assert caught.value.reason == "SHUTTING_DOWN"
