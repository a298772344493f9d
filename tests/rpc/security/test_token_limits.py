"""The limits of a token hold over all its connections, and for no other token."""

import asyncio
import types

import grpc
import numpy as np
import pytest
import seqloom
from helpers.frames import noise
from helpers.raw_calls import entry, failure_of
from helpers.real_server import open_channel, until
from helpers.tolerances import near
from hypothesis import given
from hypothesis import strategies as st
from seqloom.v1 import inference_service_pb2, inference_service_pb2_grpc
from seqloom_server.errors import ServerError
from seqloom_server.rpc.security import token_use
from seqloom_server.rpc.security.token_use import TokenUse
from seqloom_server.rpc.security.tokens import Token

X, Y = noise(6, 5, 0, "f4"), np.zeros(6, "i4")


def message(*given, **more):
    return inference_service_pb2.StreamInferRequest(entries=[entry(*given, **more)])


def connect(served, secured, name="a"):
    return seqloom.AsyncClient(served.address, token=secured.secrets[name], timeout=30, retries=0)


async def test_streams_are_counted_over_all_connections_and_given_back(serve, secured):
    secured.token("a", "infer", max_streams=3)
    secured.token("b", "infer")
    async with serve(tokens=str(secured.tokens)) as served:
        async with connect(served, secured) as one, connect(served, secured) as two, connect(served, secured, "b") as b:
            async with one.stream("small"), two.stream_group("small", 2):
                for opening in (two.stream("small"), one.stream_group("small", 1)):
                    with pytest.raises(seqloom.Overloaded) as refused:
                        await opening.__aenter__()
                    assert refused.value.retry_after > 0
                    assert "token" in refused.value.message
                async with b.stream_group("small", 5):
                    pass
                await one.infer("small", [X] * 9)  # whole sequences are no streams
            use = served.server._security.gate._uses["a"]
            await until(lambda: use.streams == 0)
            async with two.stream_group("small", 3):
                with pytest.raises(seqloom.Overloaded):
                    async with one.stream("small"):
                        pass
            with pytest.raises(seqloom.InvalidArgument) as never:
                async with one.stream_group("small", 4):
                    pass
            assert never.value.reason == "OVER_LIMIT", "it could not fit at any time"
            await until(lambda: use.streams == 0)
        assert served.value("rejected_total", reason="token") == 3


@pytest.mark.parametrize("ending", ["fails", "is cancelled", "loses its connection", "cannot be opened"])
async def test_a_stream_is_given_back_however_it_ends(serve, secured, ending):
    secured.token("a", "infer", max_streams=2)
    async with serve(tokens=str(secured.tokens), max_sessions=1) as served:
        client = connect(served, secured)
        stream = await client.stream("small").__aenter__()
        use = served.server._security.gate._uses["a"]
        assert use.streams == 1
        if ending == "cannot be opened":
            with pytest.raises(seqloom.Overloaded):
                await client.stream("small").__aenter__()
            assert use.streams == 1
        elif ending == "fails":
            await client._connection.channel().shared._call._call.write(b"\x0a\x04\x08\x01\x22\x00")  # bad frames
        elif ending == "is cancelled":
            await stream.__aexit__(ValueError, ValueError(), None)
        if ending in ("loses its connection", "cannot be opened"):
            await client._connection.channel()._channel.close(None)
        await until(lambda: use.streams == 0)
        await client.close()


async def test_runs_are_counted(serve, secured):
    secured.token("a", "train", max_runs=1)
    secured.token("b", "train")
    secured.token("c", "train", max_runs=0)
    async with (
        serve(tokens=str(secured.tokens)) as served,
        connect(served, secured) as a,
        connect(served, secured, "b") as b,
    ):
        run = await a.create_run("small", optimizer=seqloom.SGD(0.1))
        with pytest.raises(seqloom.Overloaded, match="token"):
            await a.create_run("small", optimizer=seqloom.SGD(0.1))
        await b.create_run("small", optimizer=seqloom.SGD(0.1))
        async with connect(served, secured, "c") as c:
            with pytest.raises(seqloom.InvalidArgument, match="no runs"):
                await c.create_run("small", optimizer=seqloom.SGD(0.1))
        await a.delete_run(run.id)
        await a.create_run("small", optimizer=seqloom.SGD(0.1))


async def test_whole_sequences_and_training_beyond_the_steps_a_second_are_refused(serve, secured):
    secured.token("a", "infer", "train", steps_per_second=1e-3)
    secured.token("b", "infer")
    async with (
        serve(tokens=str(secured.tokens)) as served,
        connect(served, secured) as a,
        connect(served, secured, "b") as b,
    ):
        await a.infer("small", [X])
        for call in (a.infer("small", [X]), a.gradients("small", [X], [Y])):
            with pytest.raises(seqloom.Overloaded) as refused:
                await call
            assert 5000 < refused.value.retry_after <= 6000
        await b.infer("small", [X])


async def test_live_streams_beyond_the_steps_a_second_are_slowed_down_and_lose_nothing(serve, secured):
    secured.token("a", "infer", steps_per_second=200)
    x = noise(400, 5, 1, "f4")
    async with serve(tokens=str(secured.tokens)) as served, connect(served, secured) as a:
        waited = []
        ahead = TokenUse.ahead

        async with a.stream("small") as stream:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(TokenUse, "ahead", lambda self: waited.append(ahead(self)) or waited[-1])
                outputs = []
                for part in np.split(x, [300, 350]):  # each in a message of its own
                    await stream.send(part)
                    outputs.append((await stream.receive()).outputs)
        expected = served.expected("small", x)[0]
        np.testing.assert_allclose(np.concatenate(outputs), expected, **near(rtol=1e-4, atol=1e-5))
        assert max(waited) > 0


@given(st.floats(0.1, 1e6), st.lists(st.tuples(st.floats(0, 3), st.integers(1, 5000)), max_size=50))
def test_what_is_let_in_is_never_more_than_the_rate_and_one_burst(rate, arrivals):
    """Steps are let in while the token is not ahead; one piece of work may put it ahead by its own size."""
    now, let_in, largest = 0.0, 0, 0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(token_use, "time", types.SimpleNamespace(monotonic=lambda: now))
        use = TokenUse(Token("a", b"", frozenset(), steps_per_second=rate))
        for pause, steps in arrivals:
            now += pause
            ahead = use.ahead()
            if ahead:
                with pytest.raises(ServerError) as refused:
                    use.check_steps()
                assert refused.value.retry_after == ahead
                if steps % 2:  # who waits as long as told is let in
                    now += ahead * (1 + 1e-9) + 1e-9
            if not ahead or steps % 2:
                use.check_steps()
                use.add_steps(steps)
                let_in, largest = let_in + steps, max(largest, steps)
            assert let_in <= rate * (now + token_use._BURST_SECONDS) * (1 + 1e-9) + largest


async def answers_of(calls, count, seconds):
    """How many of the calls have an output when `count` have one, and then for so many seconds."""
    outputs = [0] * len(calls)

    async def read(n, call):
        while (message := await call.read()) is not grpc.aio.EOF:
            outputs[n] += sum(e.HasField("outputs") for e in message.entries)

    readers = [asyncio.create_task(read(n, call)) for n, call in enumerate(calls)]
    await until(lambda: sum(map(bool, outputs)) >= count)
    await asyncio.sleep(seconds)
    for reader in readers:
        reader.cancel()
    return sum(map(bool, outputs))


@pytest.mark.parametrize("kind", ["live", "whole"])
@pytest.mark.parametrize("at_once", [False, True])
async def test_many_calls_are_no_way_around_the_steps_a_second(serve, secured, kind, at_once):
    """at_once: the frames come with what opens their sequence, of whole ones which do not end with them."""
    secured.token("a", "infer", steps_per_second=1e-3)
    metadata = (("authorization", f"Bearer {secured.secrets['a']}"),)
    whole = {"whole_sequence": True} if kind == "whole" else {}
    async with serve(tokens=str(secured.tokens)) as served, open_channel(served.address) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        calls = [stub.StreamInfer(metadata=metadata) for _ in range(5)]
        opening = inference_service_pb2.OpenSession(model="small", **whole)
        for call in calls:
            await call.write(message(1, X if at_once else None, open=opening))
            if not at_once:
                assert (await call.read()).entries[0].HasField("opened")
        if not at_once:
            for call in calls:
                await call.write(message(1, X))
        assert await answers_of(calls, 1, 0.3) == 1, "the first is ahead by 6000 s"
        assert served.value("steps_total") == len(X)


async def test_whole_sequences_that_do_not_end_are_bounded_and_given_back(serve, secured):
    secured.token("a", "infer", max_streams=2)
    metadata = (("authorization", f"Bearer {secured.secrets['a']}"),)
    options = {"tokens": str(secured.tokens), "max_sequences_per_request": 3}
    async with serve(**options) as served, open_channel(served.address) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        calls = [stub.StreamInfer(metadata=metadata) for _ in range(5)]
        opening = inference_service_pb2.OpenSession(model="small", whole_sequence=True)

        async def answer(call):
            return (await call.read()).entries[0]

        for n, call in enumerate(calls):
            await call.write(message(1, None, open=opening))
            answered = await answer(call)
            assert answered.HasField("opened") == (n < 3)
        failure = failure_of(answered.error)
        assert (failure.code, "token" in failure.message) == ("RESOURCE_EXHAUSTED", True)
        use = served.server._security.gate._uses["a"]
        await calls[4].write(message(2, X, open=opening, end=True))  # one that ends at once is not counted
        assert (await answer(calls[4])).HasField("outputs")
        await calls[0].write(message(1, X, end=True))
        await calls[1].write(message(1, None, cancel=True))
        calls[2].cancel()
        await until(lambda: use.begun == 0)
        assert use.streams == 0


async def test_whole_sequences_that_go_on_are_slowed_down(serve, secured):
    secured.token("a", "infer", steps_per_second=1e-3)
    metadata = (("authorization", f"Bearer {secured.secrets['a']}"),)
    async with serve(tokens=str(secured.tokens)) as served, open_channel(served.address) as channel:
        call = inference_service_pb2_grpc.InferenceServiceStub(channel).StreamInfer(metadata=metadata)
        opening = inference_service_pb2.OpenSession(model="small", whole_sequence=True)
        await call.write(message(1, None, open=opening))
        for _ in range(3):
            await call.write(message(1, X))
        assert await answers_of([call], 1, 0.3) == 1
        assert served.value("steps_total") == len(X)


async def test_a_limit_that_is_raised_lets_on_who_waits(serve, secured):
    secured.token("a", "infer", steps_per_second=1.0)
    async with (
        serve(tokens=str(secured.tokens)) as served,
        connect(served, secured) as a,
        a.stream("small") as stream,
    ):
        await stream.send(noise(600, 5, 0, "f4"))
        await stream.receive()
        await stream.send(X)
        text = secured.tokens.read_text()
        assert "steps_per_second = 1.0" in text
        secured.tokens.write_text(text.replace("steps_per_second = 1.0", "steps_per_second = 1000000.0"))
        await stream.receive()
        await a.infer("small", [X])


def test_what_is_owed_is_counted_in_steps(monkeypatch):
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(token_use, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    burst = token_use._BURST_SECONDS

    def limited(rate):
        return Token("a", b"", frozenset(), steps_per_second=rate)

    use = TokenUse(limited(10.0))
    use.add_steps(1000)
    clock.now += 50.0
    assert use.ahead() == pytest.approx(50.0 - burst)
    use.token = limited(100.0)
    assert use.ahead() == pytest.approx(5.0 - burst)
    clock.now += 2.0
    use.token = limited(1.0)
    assert use.ahead() == pytest.approx(300.0 - burst)
    use.token = limited(None)
    assert use.ahead() == 0
    use.token = limited(1.0)
    assert use.ahead() == 0, "without a limit nothing is owed"


def test_limits_that_change_hold_for_what_is_open():
    use = TokenUse(Token("a", b"", frozenset(), max_streams=2))
    use.open(2)
    use.token = Token("a", b"", frozenset(), max_streams=1)
    for streams in (1, 1):
        with pytest.raises(ServerError):
            use.open(streams)
        use.close(1)
    use.open(1)
