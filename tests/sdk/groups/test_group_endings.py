"""How stream groups end, and what holds them up: timeouts, cancelled calls, lost connections, servers that end."""

import asyncio

import numpy as np
import pytest
import seqloom
from helpers.breaking_proxy import proxy_of
from helpers.expected_outputs import CLOSE, assert_state
from helpers.gate import Gate
from helpers.plain_group import PlainGroup
from helpers.raw_groups import assert_free
from helpers.real_server import until
from seqloom._groups.group_session import GroupSession
from seqloom._streaming.deadline_timer import DeadlineTimer
from seqloom._streaming.stream_budget import StreamBudget
from seqloom_server.engine.device import slice_runner
from seqloom_server.nn.spec import ModelSpec

WIDE = ModelSpec("elman", 1000, 7, 3)


def frames(w, k, seed=0, width=5):
    return np.random.default_rng(seed).standard_normal((w, k, width)).astype("f4")


def close(got, expected):
    np.testing.assert_allclose(got, expected, **CLOSE)


def budget_of(client):
    budget = client._connection.channel().shared._budget
    return budget.size - budget.free


@pytest.mark.parametrize("cancels", [False, True])
async def test_a_step_that_is_given_up_still_runs_and_the_next_is_right(served, client, cancels):
    plain = PlainGroup(served.networks["small"], 3)
    async with client.stream_group("small", 3) as group:
        gate = Gate(served.engine.registry.current("small"))
        if cancels:
            step = asyncio.create_task(group.step(frames(3, 2)))
            await gate.arrived()
            step.cancel()
            with pytest.raises(asyncio.CancelledError):
                await step
        else:
            with pytest.raises(seqloom.DeadlineExceeded) as caught:
                await group.step(frames(3, 2), timeout=0.05)
            assert caught.value.reason == "TIMEOUT"
        with pytest.raises(seqloom.DeadlineExceeded):
            await group.state(timeout=0.05)
        gate.open()
        plain.run(range(3), frames(3, 2))
        chunk = await group.step(frames(3, 1))
        close(chunk.outputs, plain.run(range(3), frames(3, 1)))
        assert chunk.first_step.tolist() == [2, 2, 2]
        assert_state(await group.finish(), plain.states, **CLOSE)
    assert budget_of(client) == 0
    await assert_free(served)


async def test_frames_of_a_step_that_was_given_up_are_the_callers_again(serve):
    async with (
        serve({"wide": WIDE}) as served,
        proxy_of(served.address) as proxy,
        seqloom.AsyncClient(proxy.address, timeout=30) as client,
    ):
        plain = PlainGroup(served.networks["wide"], 100)
        async with client.stream_group("wide", 100, "labels") as group:
            proxy.reading.clear()
            x = np.zeros((100, 2, 1000), "f4")  # 0.8 MB: a message
            for seed in range(20):  # more than the connection holds
                x[:, 0] = frames(100, 1, seed, 1000)[:, 0]
                plain.run([7], x[[7]])
                with pytest.raises(seqloom.DeadlineExceeded):
                    await group.step(x, timeout=0.01)
            x[:] = 7
            proxy.reading.set()
            state = await group.state([7])
            assert_state(state, plain.get([7]), **CLOSE)
        assert budget_of(client) == 0


async def test_a_full_window_says_to_receive_first(serve):
    async with serve(window_steps=64) as served, seqloom.AsyncClient(served.address, timeout=30) as client:
        plain = PlainGroup(served.networks["small"], 3)
        async with client.stream_group("small", 3) as group:
            await group.send(frames(3, 60))
            with pytest.raises(seqloom.DeadlineExceeded, match="60 steps are sent and not received, of a window of 64"):
                await group.send(frames(3, 5), timeout=0.05)
            assert (await group.state()).hidden.shape == (1, 3, 7)
            waiting = asyncio.create_task(group.send(frames(3, 5)))
            close((await group.receive()).outputs, plain.run(range(3), frames(3, 60)))
            await waiting
            close((await group.receive()).outputs, plain.run(range(3), frames(3, 5)))
            big = frames(3, 200)
            close((await group.step(big)).outputs, plain.run(range(3), big))
            await group.send(big)
            plain.run(range(3), big)
            assert_state(await group.state(), plain.states, **CLOSE)
            assert_state(await group.finish(), plain.states, **CLOSE)
        assert budget_of(client) == 0


class Queue:
    """Takes what a group sends, and keeps it."""

    def __init__(self):
        self.timer, self.entries = DeadlineTimer(), []

    def put(self, entry):
        self.entries.append(entry)


@pytest.mark.parametrize("full", ["window", "budget"])
async def test_a_group_that_fails_in_the_moment_at_which_there_is_room_holds_nothing(full):
    queue, budget = Queue(), StreamBudget(7000 if full == "budget" else 1 << 20)
    group = GroupSession(queue, 1, 10, 12, budget)
    group.window = 8
    x = frames(10, 8 if full == "window" else 1, width=20)
    first = await group.send(x, None, 1e9, kept=False)
    for entry in queue.entries:
        entry.release_budget()
    more = frames(10, 1 if full == "window" else 7, width=20)
    waiting = asyncio.create_task(group.send(more, None, 1e9, kept=False))
    await asyncio.sleep(0)
    assert not waiting.done()
    group._due.popleft()
    group.count_received(first)
    group.fail(seqloom.Cancelled("gone", reason="GONE"))
    with pytest.raises(seqloom.Cancelled):
        await waiting
    assert group._share.held == 0
    assert budget.free == budget.size
    group._queue.timer.stop()


async def test_a_group_is_lost_with_its_connection_and_says_so_ever_after(served):
    async with proxy_of(served.address) as proxy, seqloom.AsyncClient(proxy.address, timeout=30) as client:
        async with client.stream_group("small", 3, resume=False) as group, client.stream_group("small", 2) as finished:
            await finished.send(frames(2, 6))
            await finished.finish()
            await group.step(frames(3, 1))
            await group.send(frames(3, 1))
            proxy.open.clear()  # no answer comes any more
            waiting = asyncio.create_task(group.step(frames(3, 400)))
            await until(lambda: served.value("steps_total") >= 3 * 402)
            proxy.cut()
            proxy.open.set()
            for call in (
                waiting,
                group.step(frames(3, 1)),
                group.send(frames(3, 1)),
                group.state(),
                group.set_state(seqloom.State(np.zeros((1, 3, 7)))),
                group.reset(),
                group.finish(),
                anext(group.run([frames(3, 1)])),
            ):
                with pytest.raises(seqloom.StreamLost):
                    await call
            assert (await finished.receive()).outputs.shape == (2, 6, 3)
        await until(lambda: served.engine.open_sessions == 0)
        async with client.stream_group("small", 3) as group:
            plain = PlainGroup(served.networks["small"], 3)
            close((await group.step(frames(3, 2))).outputs, plain.run(range(3), frames(3, 2)))
    await assert_free(served)


async def test_leaving_the_block_drops_the_group_and_what_it_holds(served, client):
    async with client.stream_group("small", 20) as group:
        await group.send(frames(20, 300))
        assert served.engine.open_sessions == 20
        with pytest.raises(seqloom.InvalidArgument, match="opened before"):
            await group.__aenter__()
    await assert_free(served)
    assert budget_of(client) == 0
    for call in (group.step(frames(20, 1)), group.state(), group.finish()):
        with pytest.raises(seqloom.Cancelled) as caught:
            await call
        assert caught.value.reason == "STREAM_CLOSED"
    unopened = client.stream_group("small", 3)
    with pytest.raises(seqloom.InvalidArgument, match="not open"):
        await unopened.step(frames(3, 1))


async def test_a_full_server_refuses_a_group_and_has_room_again(serve):
    async with serve(max_sessions=10, max_live_load=1e-6) as served:
        async with seqloom.AsyncClient(served.address, timeout=30, retries=0) as client:
            async with client.stream_group("small", 6):
                with pytest.raises(seqloom.Overloaded) as caught:
                    await client.stream_group("small", 5).__aenter__()
                assert caught.value.retry_after > 0
            await until(lambda: not served.engine.open_sessions)
            with pytest.raises(seqloom.Overloaded, match="max_live_load"):
                await client.stream_group("small", 5, rate=1e6).__aenter__()
            async with client.stream_group("small", 10) as group:
                await group.step(frames(10, 1))
        await assert_free(served)


async def test_a_group_with_a_rate_gives_what_one_without_gives(served, client):
    plain = PlainGroup(served.networks["small"], 3)
    async with client.stream_group("small", 3, rate=20) as group:
        for k in (1, 40, 0, 2):
            close((await group.step(frames(3, k))).outputs, plain.run(range(3), frames(3, k)))
    await assert_free(served)


async def test_an_idle_group_ends_and_the_call_goes_on(serve):
    async with serve(idle_seconds=0.2) as served, seqloom.AsyncClient(served.address, timeout=30) as client:
        async with client.stream_group("small", 3) as group:
            await until(lambda: served.engine.open_sessions == 0)
            with pytest.raises(seqloom.DeadlineExceeded) as caught:
                await group.step(frames(3, 1))
            assert caught.value.reason == "SESSION_IDLE"
        async with client.stream_group("small", 3) as group:
            await group.step(frames(3, 1))


async def test_a_group_keeps_its_weights_when_others_are_published_or_the_model_is_unloaded(served, client, tmp_path):
    plain = PlainGroup(served.networks["small"], 3)
    await client.create_model("other", seqloom.ModelSpec("elman", 5, 7, 3), seed=9)
    await client.export_model("other", tmp_path)
    async with client.stream_group("small", 3) as old:
        close((await old.step(frames(3, 2))).outputs, plain.run(range(3), frames(3, 2)))
        await client.import_model("small", tmp_path)
        async with client.stream_group("small", 3) as new:
            assert (old.weights_version, new.weights_version) == (1, 2)
            got = (await new.step(frames(3, 2))).outputs
            expected = (await client.infer("other", list(frames(3, 2)))).outputs
            close(got, np.stack(expected))
        await client.unload_model("small")
        close((await old.step(frames(3, 2))).outputs, plain.run(range(3), frames(3, 2)))
        with pytest.raises(seqloom.NotFound):
            await client.stream_group("small", 3).__aenter__()
        assert_state(await old.finish(), plain.states, **CLOSE)
    await assert_free(served)


async def test_when_the_device_thread_dies_a_group_is_lost(served, client, monkeypatch):
    async with client.stream_group("small", 3, resume=False) as group:
        await group.step(frames(3, 1))

        def broken(*arguments, **options):
            raise SystemError("the device is gone")

        monkeypatch.setattr(slice_runner, "launch", broken)
        async with seqloom.AsyncClient(served.address, timeout=30, retries=0) as once:
            while served.engine.alive:  # too many failed slices in a row are the device's
                with pytest.raises((seqloom.Internal, seqloom.StreamLost, seqloom.Unavailable)):
                    async with once.stream_group("small", 2, resume=False) as other:
                        await other.step(frames(2, 1))
        with pytest.raises(seqloom.StreamLost) as caught:
            await group.step(frames(3, 1))
        assert caught.value.reason == "ENGINE_DEAD"
    assert served.value("active_streams") == 0


async def test_a_server_that_stops_lets_groups_end_and_opens_none(served, client):
    plain = PlainGroup(served.networks["small"], 3)
    async with (
        seqloom.AsyncClient(served.address, timeout=30, retries=0) as once,
        once.stream_group("small", 3, resume=False) as group,
        client.stream_group("small", 2, resume=False) as never_ended,
    ):
        close((await group.step(frames(3, 1))).outputs, plain.run(range(3), frames(3, 1)))
        stopping = asyncio.ensure_future(served.server.stop(1))
        await until(lambda: not served.server._serving)
        with pytest.raises((seqloom.Unavailable, seqloom.StreamLost)):
            await once.stream_group("small", 1).__aenter__()
        close((await group.step(frames(3, 2))).outputs, plain.run(range(3), frames(3, 2)))
        assert_state(await group.finish(), plain.states, **CLOSE)
        await stopping
        with pytest.raises(seqloom.StreamLost) as caught:
            await never_ended.step(frames(2, 1))
        assert caught.value.reason == "SHUTTING_DOWN"


@pytest.mark.parametrize("reset_first", [True, False])
async def test_a_reset_around_a_failed_call_before_the_end_breaks_nothing(served, client, reset_first):
    bad = np.full((3, 1, 5), np.nan, "f4")
    async with client.stream("small") as other, client.stream_group("small", 3) as group:
        if reset_first:
            await group.reset([1])
        await group.send(bad)
        if not reset_first:
            await group.reset([1])
        with pytest.raises(seqloom.InvalidArgument):
            await group.finish()
        await group.step(np.zeros((3, 1, 5), "f4"))
        await group.finish()
        await other.send(np.zeros((1, 5), "f4"))
        assert len(await other.receive()) == 1
