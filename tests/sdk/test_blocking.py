"""The blocking face from many threads: its streams, its iterables, and what a caller must not do with it."""

import asyncio
import threading

import numpy as np
import pytest
import seqloom
from helpers.expected_outputs import CLOSE, assert_state
from helpers.frames import noise
from helpers.real_server import until
from helpers.threads import in_threads


async def in_thread(served, function):
    """Runs function(client) on a thread, so that the server's loop goes on."""
    with seqloom.Client(served.address, timeout=30) as client:
        return await asyncio.to_thread(function, client)


async def test_16_threads_each_with_a_stream_of_one_client_get_their_own(served):
    work = {i: [noise(1 + (i + j) % 6, seed=100 * i + j) for j in range(25)] for i in range(16)}
    expected = {i: served.expected("small", np.concatenate(chunks)) for i, chunks in work.items()}

    with seqloom.Client(served.address, timeout=60) as client:
        together = threading.Barrier(16)

        def stream_of(i):
            with client.stream("small") as stream:
                together.wait()
                got = []
                for chunk, frames in zip(stream.run(work[i]), work[i], strict=True):
                    assert len(chunk) == len(frames)
                    assert chunk.first_step == sum(map(len, got))
                    got.append(chunk.outputs)
                final = stream.finish()
            np.testing.assert_allclose(np.concatenate(got), expected[i][0], **CLOSE)
            assert_state(final, expected[i][1], **CLOSE)

        await in_threads(stream_of, range(16))
    await until(lambda: served.engine.open_sessions == 0)


async def test_by_hand_and_by_iteration(served):
    x = noise(20)

    def use(client):
        with client.stream("small", snapshot_interval=5) as stream:
            assert (stream.weights_version, stream.window, stream.snapshot) == (1, 4096, None)
            stream.send(x[:5])
            first = stream.receive()
            assert stream.snapshot.steps == 5
            stream.send(x[5:9])
            stream.send(x[9:])
            stream.finish()
            rest = list(stream)
            stream_after = stream
        with pytest.raises(seqloom.InvalidArgument):
            stream_after.send(x)
        return [first, *rest]

    chunks = await in_thread(served, use)
    assert [chunk.first_step for chunk in chunks] == [0, 5, 9]
    got = np.concatenate([chunk.outputs for chunk in chunks])
    np.testing.assert_allclose(got, served.expected("small", x)[0], **CLOSE)


async def test_an_iterable_that_waits_for_its_own_answers_gets_them(served):
    def use(client):
        answers, sent = [], []
        answered = threading.Semaphore(1)

        def microphone():
            for i in range(10):
                assert answered.acquire(timeout=30)
                sent.append(i)
                yield noise(2, seed=i)

        with client.stream("small") as stream:
            for chunk in stream.run(microphone()):
                answers.append(len(sent))
                answered.release()
                assert chunk.first_step == 2 * (len(answers) - 1)
        return answers

    assert await in_thread(served, use) == list(range(1, 11))


async def test_an_iterable_that_raises_ends_run_with_its_error(served):
    def use(client):
        def chunks():
            yield noise(4)
            raise OSError("no more microphone")

        with client.stream("small") as stream:
            got = []
            with pytest.raises(OSError, match="no more microphone"):
                got.extend(chunk for chunk in stream.run(chunks()))
            stream.send(noise(1))
            assert stream.receive().first_step == 4

    await in_thread(served, use)


async def test_a_consumer_that_breaks_off_ends_the_thread_that_reads_its_iterable(served):
    def use(client):
        ended = threading.Event()

        def microphone():
            try:
                while True:
                    yield noise(2)
            finally:
                ended.set()

        with client.stream("small") as stream:
            for chunk in stream.run(microphone()):
                if chunk.first_step > 4:
                    break
        assert ended.wait(30)

    await in_thread(served, use)
    await until(lambda: served.engine.open_sessions == 0)


async def test_infer_models_and_errors_are_as_those_of_the_asynchronous_face(served, tmp_path):
    def use(client):
        spec = seqloom.ModelSpec("gru", 5, 7, 3)
        made = client.create_model("other", spec, seed=4)
        assert client.model("other") == made
        assert (made.spec, made.weights_version) == (spec, 1)
        assert [model.name for model in client.models()] == ["other", "small"]
        with pytest.raises(seqloom.AlreadyExists):
            client.create_model("other", spec)
        client.export_model("other", tmp_path / "exported")
        assert client.import_model("copy", tmp_path / "exported").spec == spec
        x = noise(6)
        ours, copied = client.infer("other", [x]), client.infer("copy", [x])
        np.testing.assert_array_equal(ours.outputs[0], copied.outputs[0])
        client.unload_model("copy")
        with pytest.raises(seqloom.NotFound):
            client.model("copy")
        assert client.load_model("copy").parameter_count == made.parameter_count
        info = client.server_info()
        assert (info.device, info.version) == ("cpu", seqloom.__version__)
        assert info.limits.window_steps == 4096

    await in_thread(served, use)


async def test_after_close_every_call_says_that_the_client_is_closed(served):
    client = seqloom.Client(served.address)
    stream = client.stream("small")
    await asyncio.to_thread(stream.__enter__)
    waiting = asyncio.create_task(asyncio.to_thread(stream.receive))
    await until(lambda: served.engine.open_sessions == 1)
    await asyncio.to_thread(client.close)
    with pytest.raises(seqloom.Cancelled):
        await waiting
    for call in (client.models, lambda: client.infer("small", [noise(1)]), lambda: stream.send(noise(1))):
        with pytest.raises(seqloom.Cancelled) as caught:
            await asyncio.to_thread(call)
        assert caught.value.reason == "CLIENT_CLOSED"
    for again in (client.close, lambda: stream.__exit__(None, None, None)):
        await asyncio.to_thread(again)
    await until(lambda: served.engine.open_sessions == 0)


async def test_a_client_of_another_loop_is_refused_in_words(served):
    def elsewhere():
        return asyncio.run(client.models())

    async with seqloom.AsyncClient(served.address) as client:
        await client.models()
        with pytest.raises(seqloom.InvalidArgument, match="another event loop"):
            await asyncio.to_thread(elsewhere)
