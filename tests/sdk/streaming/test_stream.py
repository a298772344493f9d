"""Live streams through the SDK: pipelined and by hand, their windows, their state, and how they end."""

import asyncio

import numpy as np
import pytest
import seqloom
from helpers.expected_outputs import CLOSE, assert_state
from helpers.frames import cut, noise
from helpers.real_server import until
from helpers.tolerances import alike, assert_labels
from seqloom_server.nn.spec import ModelSpec

LSTM = ModelSpec("lstm", 5, 7, 3, num_layers=2)
LENGTHS = [3, 1, 0, 10, 2, 0, 0, 7]


def check(chunks, lengths, expected):
    """Each chunk has its own steps and their outputs."""
    assert [len(chunk) for chunk in chunks] == lengths
    assert [chunk.first_step for chunk in chunks] == [0, *np.cumsum(lengths)[:-1].tolist()]
    got = np.concatenate([chunk.outputs for chunk in chunks])
    np.testing.assert_allclose(got, expected[: len(got)], **CLOSE)


async def at_length(items):
    for item in items:
        await asyncio.sleep(0)
        yield item


@pytest.mark.parametrize("iterable", [list, iter, at_length])
async def test_run_yields_one_chunk_for_each_that_was_sent_in_order(served, client, iterable):
    x = noise(sum(LENGTHS))
    expected, final = served.expected("small", x)
    async with client.stream("small") as stream:
        check([chunk async for chunk in stream.run(iterable(cut(x, LENGTHS)))], LENGTHS, expected)
        assert_state(await stream.finish(), final, **CLOSE)
    assert served.engine.open_sessions == 0


async def test_run_may_be_called_again_and_goes_on(served, client):
    x = noise(sum(LENGTHS))
    parts, chunks = cut(x, LENGTHS), []
    async with client.stream("small") as stream:
        for some in (parts[:3], [], parts[3:]):
            chunks += [chunk async for chunk in stream.run(some)]
    check(chunks, LENGTHS, served.expected("small", x)[0])


@pytest.mark.parametrize("kind", ["probs", "labels", "hidden", seqloom.TopK(2)])
async def test_a_stream_gives_every_output_kind_as_infer_does(client, kind):
    x = noise(sum(LENGTHS))
    whole = (await client.infer("small", [x], outputs=kind)).outputs[0]
    async with client.stream("small", outputs=kind) as stream:
        chunks = [chunk async for chunk in stream.run(cut(x, LENGTHS))]
    assert [len(chunk) for chunk in chunks] == LENGTHS
    logits = (await client.infer("small", [x])).outputs[0]
    parts = [chunk.outputs for chunk in chunks]
    if isinstance(kind, seqloom.TopK):
        for labels in (whole.labels, np.concatenate([part.labels for part in parts])):
            assert_labels(labels, logits)
        got, whole = np.concatenate([part.scores for part in parts]), whole.scores
    else:
        got = np.concatenate(parts)
    if kind == "labels":
        for labels in (whole, got):
            assert_labels(labels, logits)
    else:
        np.testing.assert_allclose(got, whole, **alike(rtol=1e-5, atol=1e-6))
    assert got.dtype == whole.dtype


async def test_by_hand_one_chunk_comes_for_each_that_was_sent(served, client):
    x = noise(sum(LENGTHS))
    async with client.stream("small") as stream:
        chunks = []
        for part in cut(x, LENGTHS):
            await stream.send(part)
            chunks.append(await stream.receive())
    check(chunks, LENGTHS, served.expected("small", x)[0])


@pytest.mark.parametrize("by_iteration", [True, False])
async def test_what_was_due_when_it_finished_is_read_afterwards(served, client, by_iteration):
    x = noise(sum(LENGTHS))
    expected, final = served.expected("small", x)
    async with client.stream("small") as stream:
        for part in cut(x, LENGTHS):
            await stream.send(part)
        assert_state(await stream.finish(), final, **CLOSE)
        assert_state(await stream.finish(), final, **CLOSE)
        chunks = [chunk async for chunk in stream] if by_iteration else [await stream.receive() for _ in LENGTHS]
        check(chunks, LENGTHS, expected)
        assert [chunk async for chunk in stream] == []
        with pytest.raises(seqloom.InvalidArgument) as caught:
            await stream.receive()
        assert caught.value.reason == "NOTHING_DUE"
        with pytest.raises(seqloom.InvalidArgument, match="finished") as caught:
            await stream.send(x)
        assert caught.value.reason == "SESSION_ENDED"


async def test_a_stream_without_frames_ends_in_the_state_it_began_with(client):
    state = (noise(2, 7)[:, None], noise(2, 7, seed=1)[:, None])
    await client.create_model("lstm", seqloom.ModelSpec("lstm", 5, 7, 3, num_layers=2))
    async with client.stream("lstm", initial_state=seqloom.State(*state)) as stream:
        assert_state(await stream.finish(), state, **CLOSE)
        assert [chunk async for chunk in stream] == []
    async with client.stream("lstm") as stream:
        await stream.reset()
        assert_state(await stream.finish(), (np.zeros((2, 1, 7)),) * 2, **CLOSE)


async def test_a_chunk_larger_than_the_window_is_one_chunk_all_the_same(serve):
    async with serve(window_steps=64) as served, seqloom.AsyncClient(served.address, timeout=30) as client:
        lengths = [500, 3, 64, 65, 0, 200]
        x = noise(sum(lengths))
        expected, _ = served.expected("small", x)
        async with client.stream("small") as stream:
            assert stream.window == 64
            check([chunk async for chunk in stream.run(cut(x, lengths))], lengths, expected)
        async with client.stream("small") as stream:
            await stream.send(x[:500])
            check([await stream.receive()], [500], expected)


async def test_a_full_window_says_to_receive_first_and_then_the_stream_goes_on(serve):
    async with serve(window_steps=64) as served, seqloom.AsyncClient(served.address, timeout=30) as client:
        x = noise(130)
        async with client.stream("small") as stream:
            await stream.send(x[:60])
            for _ in range(2):
                with pytest.raises(seqloom.DeadlineExceeded, match="receive") as caught:
                    await stream.send(x[60:70], timeout=0.01)
                assert caught.value.reason == "WINDOW_FULL"
            chunks = [await stream.receive()]
            await stream.send(x[60:70])
            with pytest.raises(seqloom.DeadlineExceeded):
                await stream.send(x[70:130], timeout=0.01)
            chunks.append(await stream.receive())
            await stream.send(x[70:130])
            chunks.append(await stream.receive())
        check(chunks, [60, 10, 60], served.expected("small", x)[0])


async def test_a_send_that_waits_for_room_goes_when_there_is_some(serve):
    async with serve(window_steps=64) as served, seqloom.AsyncClient(served.address, timeout=30) as client:
        x = noise(128)
        async with client.stream("small") as stream:
            await stream.send(x[:64])
            waiting = asyncio.create_task(stream.send(x[64:]))
            chunks = [await stream.receive()]
            await waiting
            chunks.append(await stream.receive())
        check(chunks, [64, 64], served.expected("small", x)[0])


async def test_a_full_stream_stalls_no_other(serve):
    async with serve(window_steps=64) as served, seqloom.AsyncClient(served.address, timeout=30) as client:
        x = noise(700)
        async with client.stream("small") as full, client.stream("small") as other:
            await full.send(x[:64])
            waiting = asyncio.create_task(full.send(x[64:128]))
            check([chunk async for chunk in other.run(cut(x, [7] * 100))], [7] * 100, served.expected("small", x)[0])
            assert not waiting.done()
            chunks = [await full.receive()]
            await waiting
            chunks.append(await full.receive())
        check(chunks, [64, 64], served.expected("small", x)[0])


async def test_reset_begins_with_zeros_and_steps_count_on(served, client):
    x = noise(12)
    async with client.stream("small", initial_state=seqloom.State(np.ones((1, 1, 7)))) as stream:
        await stream.send(x[:5])
        await stream.reset()
        await stream.send(x[5:])
        first, second = await stream.receive(), await stream.receive()
        final = await stream.finish()
    np.testing.assert_allclose(first.outputs, served.expected("small", x[:5], (np.ones((1, 1, 7)),))[0], **CLOSE)
    assert second.first_step == 5
    expected, state = served.expected("small", x[5:])
    np.testing.assert_allclose(second.outputs, expected, **CLOSE)
    assert_state(final, state, **CLOSE)


async def test_a_stream_resumes_from_a_snapshot_as_if_it_had_never_broken(serve):
    x = noise(40)
    async with serve({"lstm": LSTM}) as served, seqloom.AsyncClient(served.address, timeout=30) as client:
        expected, final = served.expected("lstm", x)
        async with client.stream("lstm", snapshot_interval=8) as stream:
            assert stream.snapshot is None
            chunks = [chunk async for chunk in stream.run(cut(x[:21], [10, 0, 3, 8]))]
            snapshot = stream.snapshot
        check(chunks, [10, 0, 3, 8], expected)
        assert snapshot.steps == 16
        async with client.stream("lstm", initial_state=snapshot.state) as stream:
            rest = [chunk.outputs async for chunk in stream.run([x[16:30], x[30:]])]
            assert_state(await stream.finish(), final, **CLOSE)
        np.testing.assert_allclose(np.concatenate(rest), expected[16:], **CLOSE)


async def test_leaving_the_block_drops_the_stream(served, client):
    async with client.stream("small") as stream:
        await stream.send(noise(30))
        assert served.engine.open_sessions == 1
    await until(lambda: served.engine.open_sessions == 0)
    assert served.value("active_streams") == 0
    with pytest.raises(seqloom.Cancelled) as caught:
        await stream.send(noise(1))
    assert caught.value.reason == "STREAM_CLOSED"


async def test_an_error_of_the_callers_own_drops_the_stream_and_goes_through(served, client):
    async def use():
        async with client.stream("small") as stream:
            await stream.send(noise(30))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await use()
    await until(lambda: served.engine.open_sessions == 0)


async def test_an_iterable_that_raises_ends_run_with_its_error_after_what_was_sent(served, client):
    x = noise(9)

    def chunks():
        yield x[:4]
        yield x[4:]
        raise OSError("no more microphone")

    async with client.stream("small") as stream:
        run = stream.run(chunks())
        check([await anext(run), await anext(run)], [4, 5], served.expected("small", x)[0])
        with pytest.raises(OSError, match="no more microphone"):
            await anext(run)
        await stream.send(x)
        assert (await stream.receive()).first_step == 9


async def test_a_chunk_of_wrong_shape_ends_run_by_name_and_the_stream_goes_on(served, client):
    async with client.stream("small") as stream:
        with pytest.raises(seqloom.InvalidArgument, match=r"^chunks: has shape \[2, 4\]: expected \[steps, 5\]"):
            async for _ in stream.run([noise(2), noise(2, 4)]):
                pass
        with pytest.raises(seqloom.InvalidArgument, match=r"^frames: has shape \[4\]"):
            await stream.send([1, 2, 3, 4])
        await stream.send(noise(1))
        assert (await stream.receive()).first_step == 2


async def test_frames_that_are_no_numbers_end_the_stream_by_name_and_no_other(served, client):
    async with client.stream("small") as wrong, client.stream("small") as right:
        await wrong.send(noise(2) * np.nan)
        with pytest.raises(seqloom.InvalidArgument, match=r"^frames: is nan at \[0, 0\]") as caught:
            await wrong.receive()
        assert caught.value.request_id
        check([chunk async for chunk in right.run([noise(4)])], [4], served.expected("small", noise(4))[0])


async def test_a_consumer_that_breaks_off_stops_the_feeding(served, client):
    fed = []

    async def microphone():
        while True:
            fed.append(1)
            yield noise(2)
            await asyncio.sleep(0)

    async with client.stream("small") as stream:
        run = stream.run(microphone())
        async for chunk in run:
            if chunk.first_step >= 10:
                break
        await run.aclose()
        count = len(fed)
        async with client.stream("small") as other:
            await other.send(noise(2))
            await other.receive()
        assert len(fed) == count
    await until(lambda: served.engine.open_sessions == 0)


async def test_a_stream_keeps_its_weights_while_the_model_gets_others(served, client, tmp_path):
    x = noise(12)
    expected, final = served.expected("small", x)
    await client.create_model("other", seqloom.ModelSpec("elman", 5, 7, 3), seed=9)
    await client.export_model("other", tmp_path)
    async with client.stream("small") as old:
        await old.send(x[:5])
        chunks = [await old.receive()]
        assert (await client.import_model("small", tmp_path)).weights_version == 2
        async with client.stream("small") as new:
            assert (old.weights_version, new.weights_version) == (1, 2)
            await new.send(x)
            of_new = (await new.receive()).outputs
        await old.send(x[5:])
        chunks.append(await old.receive())
        assert_state(await old.finish(), final, **CLOSE)
    check(chunks, [5, 7], expected)
    np.testing.assert_array_equal(of_new, (await client.infer("other", [x])).outputs[0])
    assert np.abs(of_new - expected).max() > 0.01
    with pytest.raises(seqloom.VersionMismatch):
        async with client.stream("small", weights_version=1):
            pass


async def test_many_streams_and_calls_of_a_client_share_one_call(served):
    async with seqloom.AsyncClient(served.address) as client:

        async def one(i):
            x = noise(20, seed=i)
            async with client.stream("small") as stream:
                check([chunk async for chunk in stream.run(cut(x, [5] * 4))], [5] * 4, served.expected("small", x)[0])
            await client.infer("small", [x])

        await asyncio.gather(*(one(i) for i in range(40)))
    method = "seqloom.v1.InferenceService/StreamInfer"
    await until(lambda: served.value("requests_total", method=method))
    assert served.value("requests_total", method=method) == 1
    assert served.value("requests_total", method=f"{method}/session") == 80


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"model": 7}, "model: is 7"),
        ({"outputs": "speech"}, "outputs: is 'speech'"),
        ({"outputs": seqloom.TopK(4)}, r"outputs\.top_k: is 4"),
        ({"initial_state": seqloom.State(np.zeros((1, 2, 7)))}, r"initial_state\.hidden: has shape \[1, 2, 7\]"),
        ({"initial_state": seqloom.State(np.full((1, 1, 7), np.inf))}, r"initial_state\.hidden: is inf"),
        ({"weights_version": 0}, "weights_version: is 0"),
        ({"snapshot_interval": -1}, "snapshot_interval: is -1"),
        ({"snapshot_interval": 0.5}, r"snapshot_interval: is 0\.5"),
        ({"timeout": 0}, "timeout: is 0"),
        ({"timeout": "soon"}, "timeout: is 'soon'"),
    ],
)
async def test_what_is_wrong_with_opening_is_refused_by_the_arguments_name(served, client, wrong, words):
    with pytest.raises(seqloom.InvalidArgument, match=f"^{words}"):
        async with client.stream(**{"model": "small", **wrong}):
            pass
    await until(lambda: served.engine.open_sessions == 0)


async def test_a_stream_is_used_inside_its_block_and_once(client):
    stream = client.stream("small")
    with pytest.raises(seqloom.InvalidArgument, match="with"):
        await stream.send(noise(1))
    async with stream:
        pass
    with pytest.raises(seqloom.InvalidArgument, match="opened before"):
        await stream.__aenter__()


async def test_receive_waits_no_longer_than_its_timeout(client):
    async with client.stream("small") as stream:
        with pytest.raises(seqloom.DeadlineExceeded) as caught:
            await stream.receive(timeout=0.01)
        assert caught.value.reason == "TIMEOUT"
        await stream.send(noise(2))
        assert len(await stream.receive()) == 2


async def test_run_waits_for_an_answer_no_longer_than_the_streams_timeout(served, client):
    async with client.stream("small", timeout=1.0) as stream:
        with served.engine._lock, pytest.raises(seqloom.DeadlineExceeded) as caught:  # so that the device has nothing
            async for _ in stream.run([noise(2)]):
                pass
        assert caught.value.reason == "TIMEOUT"


async def test_run_waits_for_frames_as_long_as_they_take(client):
    async def slow():
        yield noise(2)
        await asyncio.sleep(1.5)
        yield noise(3)

    async with client.stream("small", timeout=1.0) as stream:
        assert [len(chunk) async for chunk in stream.run(slow())] == [2, 3]


@pytest.mark.parametrize("reading", ["receive", "iteration", "run", "finish"])
async def test_a_stream_that_was_idle_too_long_is_told_so_however_it_reads(serve, reading):
    async def never():
        await asyncio.Event().wait()
        yield

    async def read(stream):
        if reading == "receive":
            await stream.receive()
        elif reading == "finish":
            await until(lambda: served.engine.open_sessions == 0)
            await stream.finish()
        else:
            async for _ in stream if reading == "iteration" else stream.run(never()):
                pass

    async with serve(idle_seconds=0.05) as served, seqloom.AsyncClient(served.address, timeout=30) as client:
        async with client.stream("small") as stream:
            with pytest.raises(seqloom.DeadlineExceeded) as caught:
                await read(stream)
        assert caught.value.reason == "SESSION_IDLE"
        assert caught.value.request_id
