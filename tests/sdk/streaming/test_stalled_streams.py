"""What all streams of a client hold together, with a real server: it is bounded, and none stalls another."""

import asyncio
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import seqloom
from helpers.breaking_proxy import proxy_of
from helpers.expected_outputs import CLOSE
from helpers.frames import noise
from helpers.real_server import until, write_models
from seqloom._streaming.stream_budget import CLIENT_BYTES, step_bytes
from seqloom_server.nn.spec import ModelSpec

WIDE = ModelSpec("elman", 2, 3, 4_000)
CHUNK = 4 * 4_000 * 4  # bytes of outputs, as the program makes them
PROGRAM = pathlib.Path(__file__).with_name("stalled.py")


@pytest.mark.parametrize("count", [41, 200])
def test_streams_that_stall_hold_the_budget_and_a_chunk_each_and_another_goes_on(server_process, tmp_path, count):
    write_models(tmp_path, {"wide": WIDE})
    address = server_process("--models", tmp_path).address
    run = subprocess.run(
        [sys.executable, PROGRAM, address, "wide", str(count)], stdout=subprocess.PIPE, text=True, check=True
    )
    told = json.loads(run.stdout)
    assert told["went_on"] == 30
    assert CLIENT_BYTES / 2 < told["held"] <= CLIENT_BYTES + count * CHUNK
    assert told["grown"] <= CLIENT_BYTES + count * CHUNK + (32 << 20)  # what is on its way, and the allocator's own
    assert told["kept"] == 0


async def test_pipelined_streams_whose_consumers_stop_and_go_on_get_everything(serve):
    async with serve({"wide": WIDE}) as served, seqloom.AsyncClient(served.address, timeout=60) as client:
        x = noise(400, 2)
        expected = served.expected("wide", x)[0]
        go_on = asyncio.Event()

        async def consume():
            async with client.stream("wide") as stream:
                got = []
                async for chunk in stream.run([x[start : start + 20] for start in range(0, 400, 20)]):
                    got.append(chunk.outputs)
                    await go_on.wait()
            np.testing.assert_allclose(np.concatenate(got), expected, **CLOSE)

        consumers = [asyncio.create_task(consume()) for _ in range(30)]  # 192 MB
        budget = client._connection.channel().shared._budget
        await until(lambda: len(budget.waiting) > 20 and not any(task.done() for task in consumers))
        go_on.set()
        await asyncio.gather(*consumers)
        assert budget.free == budget.size


async def test_frames_that_a_connection_does_not_take_are_bounded_too(serve):
    broad = ModelSpec("elman", 16_384, 2, 2)
    chunk = np.zeros((32, 16_384), "f4")  # 2 MiB
    async with (
        serve({"broad": broad}) as served,
        proxy_of(served.address) as proxy,
        seqloom.AsyncClient(proxy.address, timeout=60) as client,
    ):
        streams = [client.stream("broad", outputs="labels", resume=False) for _ in range(8)]
        for stream in streams:
            await stream.__aenter__()
        shared = client._connection.channel().shared
        proxy.reading.clear()

        async def feed(stream):
            for _ in range(10):
                await stream.send(chunk)
            for _ in range(10):
                assert (await stream.receive()).outputs.shape == (32,)

        feeding = [asyncio.create_task(feed(stream)) for stream in streams]
        await until(lambda: all(stream._session._waiting for stream in streams))
        kept = sum(entry.frames.nbytes for entry in shared._call._outbox if entry.frames is not None)
        assert CLIENT_BYTES / 2 < kept <= CLIENT_BYTES + len(streams) * chunk.nbytes
        proxy.reading.set()
        await asyncio.gather(*feeding)
        assert shared._budget.free == shared._budget.size
        for stream in streams:
            await stream.__aexit__(None, None, None)


async def test_a_stream_that_is_lost_leaves_the_budget_to_the_next(serve):
    async with (
        serve() as served,
        proxy_of(served.address) as proxy,
        seqloom.AsyncClient(proxy.address, timeout=30) as client,
    ):
        budget = None
        for _ in range(3):
            async with client.stream("small", resume=False) as stream:
                budget = client._connection.channel().shared._budget
                for _ in range(20):
                    await stream.send(noise(7))
                await stream.receive()
                proxy.cut()
                with pytest.raises(seqloom.StreamLost):
                    await stream.finish()
        assert budget.free == budget.size


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("outputs", ["logits", "probs", "labels", "hidden", seqloom.TopK(3)])
async def test_a_steps_outputs_cost_what_they_take(client, dtype, outputs):
    await client.create_model(dtype, seqloom.ModelSpec("gru", 5, 7, 4, dtype=dtype))
    async with client.stream(dtype, outputs=outputs) as stream:
        await stream.send(np.zeros((6, 5)))
        got = (await stream.receive()).outputs
        assert stream._session.step_bytes == step_bytes(seqloom.ModelSpec("gru", 5, 7, 4, dtype=dtype), outputs)
    arrays = [got.labels, got.scores] if isinstance(got, seqloom.TopKOutput) else [got]
    assert sum(array.nbytes for array in arrays) == 6 * stream._session.step_bytes
