"""Groups whose connection or server is lost go on: every call is answered once, in order, as of an unbroken group."""

import asyncio
import contextlib
import signal

import numpy as np
import pytest
import seqloom
from helpers.breaking_proxy import proxy_of
from helpers.expected_outputs import CLOSE, assert_state
from helpers.group_scripts import ACTIONS, Checked, scripts, states_of
from helpers.plain_group import PlainGroup
from helpers.raw_groups import assert_free
from helpers.real_server import SMALL, until, write_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seqloom._groups.group_answers import Answer
from seqloom._groups.kept_calls import KeptCall, KeptCalls
from seqloom._resume import reattachment, snapshot_interval
from seqloom.v1 import inference_service_pb2 as pb
from seqloom_server.nn.spec import ModelSpec

SPEC = ModelSpec("lstm", 4, 8, 3, 2, dtype="float64", conv_channels=3, conv_width=3)


def frames(w, k, seed=0):
    return np.random.default_rng(seed).standard_normal((w, k, 5)).astype("f4")


@contextlib.asynccontextmanager
async def cuttable(served):
    async with proxy_of(served.address) as proxy, seqloom.AsyncClient(proxy.address, timeout=60) as client:
        yield proxy, client


async def test_each_call_of_a_group_may_be_cut(served):
    plain = PlainGroup(served.networks["small"], 4)
    async with cuttable(served) as (proxy, client), client.stream_group("small", 4, snapshot_interval=4) as group:
        for i in range(4):
            x, some = frames(4, 3, i), frames(2, 2, i)
            first = plain.steps.copy()
            await group.send(x)
            proxy.cut()
            chunk = await group.receive()
            np.testing.assert_allclose(chunk.outputs, plain.run(range(4), x), **CLOSE)
            np.testing.assert_array_equal(chunk.first_step, first)
            stepping = asyncio.create_task(group.step(some, [2, 0]))
            proxy.cut()
            np.testing.assert_allclose((await stepping).outputs, plain.run([2, 0], some), **CLOSE)
            await group.reset([i])
            plain.reset([i])
            proxy.cut()
            assert_state(await group.state([1, i] if i != 1 else [1]), plain.get([1, i] if i != 1 else [1]), **CLOSE)
        finishing = asyncio.create_task(group.finish())
        proxy.cut()
        assert_state(await finishing, plain.states, **CLOSE)
        assert group.snapshot is not None
    await assert_free(served)


async def test_what_was_sent_behind_a_failing_call_fails_as_well_whether_cut_or_not(served):
    bad, good = np.full((3, 1, 5), np.nan, "f4"), frames(3, 2)
    for cut_at in range(4):
        plain = PlainGroup(served.networks["small"], 3)
        async with cuttable(served) as (proxy, client), client.stream_group("small", 3) as group:
            await group.step(good)
            plain.run(range(3), good)
            for i, x in enumerate((good, bad, good)):
                await group.send(x)
                if i == cut_at:
                    proxy.cut()
            np.testing.assert_allclose((await group.receive()).outputs, plain.run(range(3), good), **CLOSE)
            for _ in range(2):
                with pytest.raises(seqloom.InvalidArgument, match="nan"):
                    await group.receive()
            if cut_at == 3:
                proxy.cut()
            np.testing.assert_allclose((await group.step(good)).outputs, plain.run(range(3), good), **CLOSE)
            assert_state(await group.finish(), plain.states, **CLOSE)
    await assert_free(served)


async def test_a_server_that_is_killed_and_started_again_goes_on(server_process, tmp_path):
    networks = write_models(tmp_path, {"small": SMALL})
    started = await asyncio.to_thread(server_process, "--models", tmp_path)
    plain = PlainGroup(networks["small"], 50)
    environment = {"SEQLOOM_LISTEN": started.address}
    async with (
        seqloom.AsyncClient(started.address, timeout=60) as client,
        client.stream_group("small", 50) as group,
    ):
        for i in range(20):
            x = frames(50, 2, i)
            if i == 10:
                await group.send(x)
                await asyncio.to_thread(started.end, signal.SIGKILL)
                await asyncio.to_thread(lambda: server_process("--models", tmp_path, environment=environment))
                chunk = await group.receive()
            else:
                chunk = await group.step(x)
            np.testing.assert_allclose(chunk.outputs, plain.run(range(50), x), **CLOSE)
        assert_state(await group.finish(), plain.states, **CLOSE)


async def test_what_is_kept_is_bounded(serve, monkeypatch):
    monkeypatch.setattr(snapshot_interval, "_GROUP_BYTES", 1 << 20)
    async with serve({"wide": ModelSpec("elman", 1000, 4, 2)}) as served, cuttable(served) as (proxy, client):
        async with client.stream_group("wide", 10, "labels") as group:
            whole = []
            for i in range(100):
                x = np.random.default_rng(i).standard_normal((10, 2, 1000)).astype("f4")  # 80,000 bytes
                whole.append((await group.step(x)).outputs)
                assert group._session._kept.size <= (1 << 20) + 2 * x.nbytes
                if i == 50:
                    proxy.cut()
        assert served.value("steps_total") < 2000 + 200
        async with client.stream_group("wide", 10, "labels") as unbroken:
            for i in range(100):
                x = np.random.default_rng(i).standard_normal((10, 2, 1000)).astype("f4")
                np.testing.assert_array_equal((await unbroken.step(x)).outputs, whole[i])


def test_whatever_is_cut_each_stream_gets_what_it_gets_alone(serve, monkeypatch):
    monkeypatch.setattr(snapshot_interval, "_ENTRIES", 3)
    monkeypatch.setattr(reattachment, "_QUICKLY", -1.0)
    with asyncio.Runner() as runner:
        serving = serve({"m": SPEC}, max_batch_steps=20, window_steps=64, poison_slots=True)
        served = runner.run(serving.__aenter__())

        async def scenario(script, seed):
            n, begins, actions = script
            draw = np.random.default_rng(seed)
            initial = states_of(SPEC, n, draw) if begins else None
            state = None if initial is None else seqloom.State(**dict(zip(SPEC.state_shapes(), initial, strict=True)))
            async with cuttable(served) as (proxy, client):
                async with client.stream_group("m", n, initial_state=state) as group:
                    checked = Checked(group, PlainGroup(served.networks["m"], n, initial), SPEC, draw)
                    for what, streams, k, turns in actions:
                        for _ in range(turns):
                            await asyncio.sleep(0)
                        if what == "cut":
                            proxy.cut()
                        elif what == "cut_within":
                            doing = asyncio.create_task(checked.do("step", streams, k))
                            for _ in range(10 * turns):
                                await asyncio.sleep(0)
                            proxy.cut()
                            await doing
                        else:
                            await checked.do(what, streams, k)
                    await checked.end()
                budget = client._connection.channel().shared._budget
                assert budget.free == budget.size
            await assert_free(served)

        @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(scripts((*ACTIONS, "cut", "cut", "cut_within"), 14), st.integers(0, 9))
        def holds(script, seed):
            runner.run(asyncio.wait_for(scenario(script, seed), 60))

        try:
            holds()
        finally:
            runner.run(serving.__aexit__(None, None, None))


def test_a_snapshot_that_came_before_the_states_were_set_again_is_not_taken():
    kept, known, zeros = KeptCalls(3), seqloom.State(np.ones((1, 3, 7))), seqloom.State(np.zeros((1, 3, 7)))
    kept.rebase(known)
    setting = Answer(internal=True)
    begin = KeptCall(pb.GroupRequest(), None, None, setting, setting, begins=True)
    kept.unsent.append(begin)
    kept.rebase(zeros)  # of a server that goes away as soon as it has opened the group
    kept.sent(kept.unsent.popleft())
    kept.rebase(zeros)
    assert kept.state is known
    setting.ready = True
    kept.rebase(zeros)
    assert kept.state is zeros


async def test_without_resume_a_group_is_lost_as_ever(served):
    async with cuttable(served) as (proxy, client), client.stream_group("small", 3, resume=False) as group:
        await group.step(frames(3, 1))
        proxy.cut()
        with pytest.raises(seqloom.StreamLost):
            await group.step(frames(3, 1))
    await until(lambda: served.engine.open_sessions == 0)
