"""What a caller does with its own buffers and iterables while the SDK works with them."""

import asyncio
import threading

import numpy as np
import pytest
import seqloom
from helpers.real_server import until
from helpers.tolerances import near
from seqloom_server.nn.spec import ModelSpec


@pytest.fixture
async def client(served):
    async with seqloom.AsyncClient(served.address, timeout=30.0) as client:
        yield client


async def test_a_buffer_may_be_filled_anew_as_soon_as_it_was_sent(served, client):
    x = np.random.default_rng(0).standard_normal((200, 5)).astype("f4")
    buffer = np.empty((2, 5), "f4")

    def microphone():
        for start in range(0, 200, 2):
            buffer[:] = x[start : start + 2]
            yield buffer

    async with client.stream("small") as stream:
        outputs = [chunk.outputs async for chunk in stream.run(microphone())]
    np.testing.assert_allclose(np.concatenate(outputs), served.expected("small", x)[0], **near(rtol=1e-4, atol=1e-5))


async def test_outputs_that_nobody_receives_are_bounded_by_the_window(client):
    await client.create_model("wide", seqloom.ModelSpec("elman", 2, 3, 20_000))
    chunk = np.zeros((16, 2), "f4")  # whose outputs come in several entries
    async with client.stream("wide") as stream:
        for _ in range(stream.window // len(chunk)):
            await stream.send(chunk)
        await until(lambda: stream._session.ready)
        with pytest.raises(seqloom.DeadlineExceeded) as caught:
            await stream.send(chunk, timeout=0.5)
        assert caught.value.reason == "WINDOW_FULL"


async def test_a_send_behind_another_keeps_its_own_timeout(client):
    async with client.stream("small") as stream:
        first = asyncio.create_task(stream.send(np.zeros((stream.window, 5), "f4")))
        await first
        behind = asyncio.create_task(stream.send(np.zeros((1, 5), "f4"), timeout=20.0))
        await asyncio.sleep(0)
        with pytest.raises(seqloom.DeadlineExceeded):
            await stream.send(np.zeros((1, 5), "f4"), timeout=0.05)
        assert not behind.done()
        await stream.receive()
        await behind


async def test_finish_lets_what_is_being_sent_go_first(served, client):
    x = np.random.default_rng(0).standard_normal((10_000, 5)).astype("f4")
    async with client.stream("small") as stream:
        assert stream.window < len(x)
        sending = asyncio.create_task(stream.send(x))
        await asyncio.sleep(0)
        state = await stream.finish()
        await sending
        chunk = await stream.receive()
    expected, final = served.expected("small", x)
    np.testing.assert_allclose(chunk.outputs, expected, **near(rtol=1e-4, atol=1e-5))
    np.testing.assert_allclose(state.hidden, final[0], **near(rtol=1e-4, atol=1e-5))


async def test_waiting_in_vain_leaves_nothing_behind(client):
    async with client.stream("small") as stream:
        for _ in range(20):
            with pytest.raises(seqloom.DeadlineExceeded):
                await stream.receive(timeout=1e-3)
        assert not stream._session._waiting


async def test_an_exit_out_of_an_iterable_is_the_callers_and_ends_no_other_client(served):
    def chunks():
        yield np.zeros((1, 5), "f4")
        raise SystemExit(3)

    def run():
        with seqloom.Client(served.address, timeout=30.0) as client, client.stream("small") as stream:
            with pytest.raises(SystemExit):
                list(stream.run(chunks()))
            with seqloom.Client(served.address, timeout=30.0) as other:
                assert other.models()

    await asyncio.to_thread(run)


async def test_an_import_from_nowhere_names_the_folder(client, tmp_path):
    with pytest.raises(seqloom.InvalidArgument, match="not-there"):
        await client.import_model("copy", tmp_path / "not-there")


async def test_a_model_replaced_by_one_of_another_shape_is_streamed_to_at_once(served, client):
    async with client.stream("small") as stream:
        await stream.send(np.zeros((1, 5), "f4"))
        await stream.receive()
    async with seqloom.AsyncClient(served.address) as other:
        await other.unload_model("small")
        await other.create_model("next", seqloom.ModelSpec("elman", 8, 3, 4))
        await other.export_model("next", served.models / "exported")
        await other.import_model("small", served.models / "exported")
    async with client.stream("small") as stream:
        await stream.send(np.zeros((3, 8), "f4"))
        assert (await stream.receive()).outputs.shape == (3, 4)


@pytest.mark.parametrize("keepalive", [0.5, 9.0, 1e9])
def test_a_keepalive_that_servers_would_not_stand_is_refused(keepalive):
    with pytest.raises(seqloom.InvalidArgument, match="keepalive"):
        seqloom.Client("localhost:1", keepalive=keepalive)


async def test_no_thread_outlives_its_client(served):
    def chunks():
        while True:
            yield np.zeros((1, 5), "f4")

    def run():
        client = seqloom.Client(served.address)
        with client.stream("small") as stream:
            for _ in zip(range(3), stream.run(chunks()), strict=False):
                pass
            reading = stream.run(chunks())
            next(reading)
            client.close()
        return reading

    await asyncio.to_thread(run)
    await until(lambda: not [thread for thread in threading.enumerate() if thread.name == "seqloom-chunks"])


async def test_many_empty_chunks_before_wide_ones_wait_instead_of_breaking_the_stream(serve):
    async with (
        serve({"broad": ModelSpec("elman", 16_384, 2, 2)}, window_steps=64) as served,
        seqloom.AsyncClient(served.address, timeout=30.0) as client,
        client.stream("broad") as stream,
    ):
        for _ in range(stream.window - 1):
            await stream.send(np.zeros((0, 16_384), "f4"))
        await stream.send(np.zeros((12, 16_384), "f4"))  # in several entries
        assert [len(await stream.receive()) for _ in range(stream.window)] == [0] * (stream.window - 1) + [12]


async def test_a_send_in_the_moment_between_two_others_keeps_its_timeout(client):
    async with client.stream("small") as stream:
        await stream.send(np.zeros((stream.window, 5), "f4"))
        first = asyncio.create_task(stream.send(np.zeros((1, 5), "f4"), timeout=0.1))
        await asyncio.sleep(0)
        waiter = asyncio.create_task(stream.send(np.zeros((1, 5), "f4"), timeout=20.0))
        with pytest.raises(seqloom.DeadlineExceeded):
            await first
        with pytest.raises(seqloom.DeadlineExceeded):
            await asyncio.wait_for(stream.send(np.zeros((1, 5), "f4"), timeout=0.1), 10)
        assert not waiter.done()
        await stream.receive()
        await waiter


async def test_a_stream_that_is_given_up_while_it_opens_leaves_nothing_open(served, client, monkeypatch):
    async with client.stream("small"):
        pass
    async with seqloom.AsyncClient(served.address) as other:  # so that the next stream meets another version
        await other.export_model("small", served.models / "exported")
        await other.import_model("small", served.models / "exported")
    ask = client._model_info

    async def slow(name, deadline):
        if name not in client._model_infos:
            await asyncio.Event().wait()
        return await ask(name, deadline)

    monkeypatch.setattr(client, "_model_info", slow)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.stream("small").__aenter__(), 0.5)
    await until(lambda: served.engine.open_sessions == 0)
