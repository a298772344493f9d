"""Streams whose connection or server is lost go on: every step's outputs once, in order, as of an unbroken stream."""

import asyncio
import contextlib
import math
import signal

import numpy as np
import pytest
import seqloom
from helpers.breaking_proxy import proxy_of
from helpers.expected_outputs import CLOSE, assert_state
from helpers.frames import cut, noise
from helpers.real_server import SMALL, until, write_models
from helpers.tolerances import alike
from seqloom_server.nn.files import model_folder
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.spec import ModelSpec

LENGTHS = [3, 1, 0, 10, 2, 0, 0, 7]
LSTM = ModelSpec("lstm", 5, 7, 3, num_layers=2, conv_channels=4, conv_width=3)


def check(chunks, lengths, expected):
    """Each chunk has its own steps and their outputs."""
    assert [len(chunk) for chunk in chunks] == lengths
    assert [chunk.first_step for chunk in chunks] == [0, *np.cumsum(lengths)[:-1].tolist()]
    np.testing.assert_allclose(np.concatenate([chunk.outputs for chunk in chunks]), expected, **CLOSE)


@contextlib.asynccontextmanager
async def cuttable(served, **options):
    async with proxy_of(served.address) as proxy, seqloom.AsyncClient(proxy.address, timeout=60, **options) as client:
        yield proxy, client


@pytest.mark.parametrize("cuts", [1, 3])
async def test_by_hand_a_stream_goes_on_after_each_cut(served, cuts):
    x = noise(sum(LENGTHS))
    expected, final = served.expected("small", x)
    async with cuttable(served) as (proxy, client), client.stream("small") as stream:
        chunks = []
        for i, part in enumerate(cut(x, LENGTHS)):
            await stream.send(part)
            if i % 3 < cuts:
                proxy.cut()
            chunks.append(await stream.receive())
        proxy.cut()
        assert_state(await stream.finish(), final, **CLOSE)
        check(chunks, LENGTHS, expected)
        assert stream.snapshot is None
        assert proxy.connections > cuts
    await until(lambda: served.engine.open_sessions == 0)


async def test_pipelined_and_longer_than_the_window(serve):
    lengths = [50, 500, 0, 64, 3, 65, 200] * 4
    x = noise(sum(lengths))
    async with serve({"lstm": LSTM}, window_steps=64) as served, cuttable(served) as (proxy, client):
        expected, final = served.expected("lstm", x)
        async with client.stream("lstm") as stream:
            chunks = []
            async for chunk in stream.run(cut(x, lengths)):
                chunks.append(chunk)
                if len(chunks) % 5 == 0:
                    proxy.cut()
            check(chunks, lengths, expected)
            assert_state(await stream.finish(), final, **CLOSE)


async def test_a_cut_while_nothing_is_sent_is_not_noticed(served):
    x = noise(8)
    async with cuttable(served) as (proxy, client), client.stream("small") as stream:
        await stream.send(x[:4])
        first = await stream.receive()
        proxy.cut()
        await until(lambda: served.engine.open_sessions == 1 and proxy.connections == 2)
        await stream.send(x[4:])
        check([first, await stream.receive()], [4, 4], served.expected("small", x)[0])


@pytest.mark.parametrize("empty_between", [False, True])
async def test_a_reset_before_or_behind_the_cut_happens_once(served, empty_between):
    x = noise(12)
    begin = seqloom.State(np.full((1, 1, 7), 0.5, "f4"))
    first = served.expected("small", x[:5], (begin.hidden,))[0]
    second, final = served.expected("small", x[5:])
    for cut_at in range(4):
        async with cuttable(served) as (proxy, client), client.stream("small", initial_state=begin) as stream:
            chunks = []
            await stream.send(x[:5])
            for step in range(4):
                if step == cut_at:
                    proxy.cut()
                if step == 0:
                    chunks.append(await stream.receive())
                elif step == 1:
                    await stream.reset()
                    if empty_between:
                        await stream.send(x[:0])
                        chunks.append(await stream.receive())
                elif step == 2:
                    await stream.send(x[5:])
                    chunks.append(await stream.receive())
            assert_state(await stream.finish(), final, **CLOSE)
            check(chunks, [5, 0, 7] if empty_between else [5, 7], np.concatenate([first, second]))


@pytest.mark.parametrize("outputs", ["labels", "hidden", seqloom.TopK(2)])
async def test_every_kind_of_outputs(served, outputs):
    x = noise(40)
    async with cuttable(served) as (proxy, client):
        whole = (await client.infer("small", [x], outputs=outputs)).outputs[0]
        async with client.stream("small", outputs) as stream:
            chunks = []
            for part in cut(x, [10] * 4):
                await stream.send(part)
                proxy.cut()
                chunks.append((await stream.receive()).outputs)
    if isinstance(outputs, seqloom.TopK):
        np.testing.assert_array_equal(np.concatenate([each.labels for each in chunks]), whole.labels)
    else:
        np.testing.assert_allclose(np.concatenate(chunks), whole, **alike(rtol=1e-5, atol=1e-6))


async def test_finish_in_flight_and_snapshots_rate_and_version_of_the_callers_own(served):
    x = noise(30)
    expected, final = served.expected("small", x)
    async with (
        cuttable(served) as (proxy, client),
        client.stream("small", snapshot_interval=8, rate=50, weights_version=1) as stream,
    ):
        await stream.send(x)
        proxy.open.clear()
        finishing = asyncio.create_task(stream.finish())
        await until(lambda: served.value("steps_total") >= 30)
        proxy.cut()
        proxy.open.set()
        assert_state(await finishing, final, **CLOSE)
        np.testing.assert_allclose((await stream.receive()).outputs, expected, **CLOSE)
        assert stream.snapshot.steps == 24
        assert_state(stream.snapshot.state, served.expected("small", x[:24])[1], **CLOSE)
        assert stream.weights_version == 1


async def test_what_is_kept_is_bounded_by_snapshots_and_nothing_is_lost_of_it(serve):
    wide = ModelSpec("elman", 500, 4, 2)  # 2,000 bytes a frame
    x = noise(4000, width=500, dtype="f4")
    async with serve({"wide": wide}) as served, cuttable(served) as (proxy, client):
        expected, _ = served.expected("wide", x)
        async with client.stream("wide") as stream:
            chunks = []
            async for chunk in stream.run(cut(x, [40] * 100)):
                chunks.append(chunk)
                assert stream._session._kept.size <= (2 << 20) + x[:40].nbytes
                if len(chunks) in (20, 70):
                    assert stream._session._kept.steps > 0, "it has asked for snapshots"
                    proxy.cut()
        check(chunks, [40] * 100, expected)
        assert client._connection.channel().shared._budget.free == client._connection.channel().shared._budget.size
        assert served.value("steps_total") < 4000 + 2 * 1100, "only what was sent since a snapshot runs again"


async def test_many_streams_of_a_client_return_together(served):
    async with cuttable(served) as (proxy, client):

        async def one(i):
            x = noise(60, seed=i)
            async with client.stream("small") as stream:
                chunks = []
                async for chunk in stream.run(cut(x, [5] * 12)):
                    chunks.append(chunk)
                    if i == 0 and len(chunks) in (3, 8):
                        proxy.cut()
                    await asyncio.sleep(0.002)
            check(chunks, [5] * 12, served.expected("small", x)[0])

        await asyncio.gather(*(one(i) for i in range(50)))
        assert proxy.connections <= 5
    await until(lambda: served.engine.open_sessions == 0)


async def test_without_resume_a_stream_is_lost_as_ever(served):
    async with cuttable(served) as (proxy, client), client.stream("small", resume=False) as stream:
        await stream.send(noise(3))
        await stream.receive()
        proxy.cut()
        with pytest.raises(seqloom.StreamLost):
            await stream.receive()


async def test_it_is_lost_if_there_is_no_server_until_the_timeout(served):
    async with (
        cuttable(served) as (proxy, client),
        client.stream("small", timeout=1.0) as stream,
        client.stream("small") as patient,
    ):
        await stream.send(noise(3))
        await stream.receive()
        proxy.refuse()
        with pytest.raises(seqloom.DeadlineExceeded, match="lost and is not resumed yet"):
            await patient.receive(timeout=0.2)
        with pytest.raises((seqloom.StreamLost, seqloom.DeadlineExceeded)):
            await stream.receive()
        await until(lambda: stream._session.failure is not None)
        for call in (stream.send(noise(1)), stream.receive(), stream.finish(), anext(aiter(stream))):
            with pytest.raises(seqloom.StreamLost, match="could not be resumed in 1 s"):
                await call


async def test_closing_the_client_or_leaving_the_block_ends_a_resumption(served):
    async with cuttable(served) as (proxy, client), client.stream("small") as left, client.stream("small") as kept:
        proxy.refuse()
        await until(lambda: left._session.lost and kept._session.lost)
        await left.__aexit__(None, None, None)
        with pytest.raises(seqloom.Cancelled) as caught:
            await left.send(noise(1))
        assert caught.value.reason == "STREAM_CLOSED"
        waiting = asyncio.create_task(kept.receive())
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(seqloom.Cancelled) as caught:
            await waiting
        assert caught.value.reason == "CLIENT_CLOSED"
        assert not client._connection._channel.shared.pauses.resuming


async def test_weights_that_were_replaced_meanwhile_are_told_to_be_gone(server_process, tmp_path):
    write_models(tmp_path, {"small": SMALL})
    started = await asyncio.to_thread(server_process, "--models", tmp_path)
    async with seqloom.AsyncClient(started.address, timeout=60) as client, client.stream("small") as stream:
        await stream.send(noise(3))
        await stream.receive()
        await asyncio.to_thread(started.end, signal.SIGKILL)
        model_folder.save(tmp_path / "small", Network.create(SMALL, 9, "cpu"), 2)
        environment = {"SEQLOOM_LISTEN": started.address}
        await asyncio.to_thread(lambda: server_process("--models", tmp_path, environment=environment))
        with pytest.raises(seqloom.StreamLost, match="weights of the stream are gone") as caught:
            await stream.receive()
        assert caught.value.reason == "WEIGHTS_GONE"


async def test_a_server_that_is_killed_and_started_again_goes_on_to_the_bit(server_process, tmp_path):
    write_models(tmp_path, {"small": SMALL, "lstm": LSTM})
    started = await asyncio.to_thread(server_process, "--models", tmp_path)
    parts = cut(noise(600), [20] * 30)

    async def unbroken(client, model):
        async with client.stream(model, timeout=math.inf) as stream:
            got = []
            for part in parts:
                await stream.send(part)
                got.append(await stream.receive())
            return got, await stream.finish()

    async with seqloom.AsyncClient(started.address, timeout=120) as client:
        expected = {model: await unbroken(client, model) for model in ("small", "lstm")}
        for model, (wanted, final) in expected.items():
            async with client.stream(model) as stream:
                got = []
                for i, part in enumerate(parts):
                    await stream.send(part)
                    if i == 13:
                        await asyncio.to_thread(started.end, signal.SIGKILL)
                        environment = {"SEQLOOM_LISTEN": started.address}
                        start = asyncio.to_thread(
                            lambda: server_process("--models", tmp_path, environment=environment)  # noqa: B023
                        )
                        restarting = asyncio.create_task(start)
                    got.append(await stream.receive())
                    if i == 13:
                        started = await restarting
                for one, other in zip(got, wanted, strict=True):
                    assert one.first_step == other.first_step
                    np.testing.assert_allclose(one.outputs, other.outputs, **alike(rtol=1e-5, atol=1e-6))
                if model == "small":  # each step ran alone, in the same steps
                    for one, other in zip(got[14:], wanted[14:], strict=True):
                        np.testing.assert_array_equal(one.outputs, other.outputs)
                assert_state(await stream.finish(), (final.hidden,) if final.cell is None else _parts(final), **CLOSE)


def _parts(state):
    return tuple(part for part in (state.hidden, state.cell, state.inputs) if part is not None)


def test_the_blocking_client_resumes_as_well(server_process, tmp_path):
    write_models(tmp_path, {"small": SMALL})
    started = server_process("--models", tmp_path)
    x = noise(40)
    with seqloom.Client(started.address, timeout=60) as client:
        whole = client.infer("small", [x]).outputs[0]
        with client.stream("small") as stream:
            got = []
            for i, part in enumerate(cut(x, [10] * 4)):
                stream.send(part)
                if i == 1:
                    started.end(signal.SIGKILL)
                    server_process("--models", tmp_path, environment={"SEQLOOM_LISTEN": started.address})
                got.append(stream.receive().outputs)
            stream.finish()
    np.testing.assert_allclose(np.concatenate(got), whole, **alike(rtol=1e-5, atol=1e-6))
