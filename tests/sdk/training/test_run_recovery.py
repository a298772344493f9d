"""Runs whose connection is cut, or whose server is killed: every call is done once, in its step.

By the call that all runs of a client share, and as a client does it before a server that does not know that call.
"""

import asyncio
import math
import random
import signal

import numpy as np
import pytest
import seqloom
import torch
from helpers.autograd_reference import Reference
from helpers.breaking_proxy import proxy_of
from helpers.real_server import until, write_models
from helpers.run_helpers import SPEC, assert_weights, call_of, weights_of
from seqloom._connection.run_stream import RunStream
from seqloom_server.nn.spec import ModelSpec

CLOSE = {"rtol": 1e-9, "atol": 1e-12}
ADAM = seqloom.Adam(0.01)


@pytest.fixture(autouse=True, params=["shared", pytest.param("a call each", marks=pytest.mark.slow)])
def transport(request, monkeypatch):
    """How gradients and steps are sent."""
    if request.param == "a call each":
        before = RunStream.__init__

        def knowing(stream, start_call):
            before(stream, start_call)
            stream.served = False

        monkeypatch.setattr(RunStream, "__init__", knowing)


@pytest.fixture
def killable(server_process, tmp_path):
    """A server with one model "m" that can be killed and come back: start(), die_and_return(), address."""

    class Killable:
        def __init__(self) -> None:
            self.networks = write_models(tmp_path / "models", {"m": SPEC})
            self.address = "127.0.0.1:0"
            self.start()

        def start(self) -> None:
            self.process = server_process(
                *("--models", tmp_path / "models", "--runs", tmp_path / "runs"),
                environment={"SEQLOOM_LISTEN": self.address},
            )
            self.address = self.process.address

        async def die_and_return(self) -> None:
            """kill -9, and a new one at the same address."""
            await asyncio.to_thread(self.process.end, signal.SIGKILL)
            await asyncio.to_thread(self.start)

    return Killable()


def trained(networks, steps, clip_norm=None):
    """The weights that torch makes of the same data."""
    reference = Reference(networks["m"])
    reference.train(torch.optim.Adam(reference.parameters.values(), 0.01), steps, clip_norm)
    return reference.parameters


async def test_a_connection_that_breaks_again_and_again_adds_nothing_twice_and_loses_nothing(serve, tmp_path):
    steps = [[call_of(20 * k + n) for n in range(1 + k % 5)] for k in range(25)]
    async with serve({"m": SPEC}, runs=str(tmp_path / "runs")) as served, proxy_of(served.address) as proxy:
        async with seqloom.AsyncClient(proxy.address, timeout=60) as client:
            run = await client.create_run("m", optimizer=ADAM)
            draw = random.Random(1)
            tasks = []
            for calls in steps:
                tasks += [run.forward_backward(xs, labels) for xs, labels in calls]
                tasks.append(asyncio.ensure_future(run.step()))
                await asyncio.sleep(0)
                if draw.random() < 0.4:
                    sent, done = list(tasks), sum(task.done() for task in tasks)
                    proxy.open.clear()  # what the server does from here on, its caller does not hear of
                    await asyncio.wait({asyncio.ensure_future(asyncio.sleep(draw.random() * 0.02))})
                    proxy.cut()
                    proxy.open.set()
                    await until(lambda sent=sent, done=done: sum(task.done() for task in sent) > done)
            await asyncio.gather(*tasks)
            assert (await run.info()).step == 25
            found = await weights_of(client, run, tmp_path / "m")
        assert proxy.connections > 5
        assert served.value("deduplicated_calls_total") > 0
        assert_weights(found, trained(served.networks, steps), **CLOSE)


async def test_kill_9_under_a_client_that_awaits_each_call_leaves_the_weights_as_they_would_be(killable, tmp_path):
    steps = [[call_of(20 * k + n) for n in range(2)] for k in range(12)]
    async with seqloom.AsyncClient(killable.address, timeout=60) as client:
        run = await client.create_run("m", optimizer=ADAM, clip_norm=1.0, checkpoint_interval=4)
        other = await client.create_run("m", optimizer=ADAM, clip_norm=1.0, checkpoint_interval=4)
        numbers = []
        for number, calls in enumerate(steps, 1):
            for n, (xs, labels) in enumerate(calls):
                result = await run.forward_backward(xs, labels)
                assert result.step == number
                if (number, n) in (
                    (3, 0),
                    (7, 1),
                    (10, 0),
                ):  # with gradients that wait for their step, and calls refused
                    with pytest.raises(seqloom.InvalidArgument):
                        await run.step(expected_step=99)
                    await killable.die_and_return()
            numbers.append((await run.step()).step_number)
        assert numbers == list(range(1, 13))
        for calls in steps:
            for xs, labels in calls:
                await other.forward_backward(xs, labels)
            await other.step()
        found = await weights_of(client, run, tmp_path / "killed")
        expected = await weights_of(client, other, tmp_path / "whole")
    for name, parameter in expected.items():
        np.testing.assert_array_equal(found[name], parameter, err_msg=name)
    assert_weights(found, trained(killable.networks, steps, 1.0), **CLOSE)


async def test_kill_9_under_calls_that_nobody_awaits_puts_each_into_its_step(killable, tmp_path):
    steps = [[call_of(20 * k + n) for n in range(3)] for k in range(30)]
    async with seqloom.AsyncClient(killable.address, timeout=60) as client:
        run = await client.create_run("m", optimizer=ADAM, checkpoint_interval=5)
        gradients, applied = [], []
        for calls in steps:
            gradients.append([run.forward_backward(xs, labels) for xs, labels in calls])
            applied.append(asyncio.ensure_future(run.step()))
            await asyncio.sleep(0)
        for wanted in (7, 19):
            await until(lambda wanted=wanted: sum(step.done() for step in applied) >= wanted)
            await killable.die_and_return()
        results = await asyncio.gather(*applied)
        assert [step.step_number for step in results] == list(range(1, 31))
        assert [{(await future).step for future in of_step} for of_step in gradients] == [{k} for k in range(1, 31)]
        found = await weights_of(client, run, tmp_path / "m")
    assert_weights(found, trained(killable.networks, steps), **CLOSE)


async def test_kill_9_under_several_clients_of_a_run_puts_each_call_into_its_step(killable, tmp_path):
    steps = [[call_of(20 * k + n) for n in range(6)] for k in range(12)]
    async with (
        seqloom.AsyncClient(killable.address, timeout=60) as first,
        seqloom.AsyncClient(killable.address, timeout=60) as second,
    ):
        run = await first.create_run("m", optimizer=ADAM, checkpoint_interval=5)
        members = [run, await second.attach_run(run.id), await second.attach_run(run.id)]
        for number, calls in enumerate(steps, 1):
            futures = [members[n % 3].forward_backward(*call) for n, call in enumerate(calls)]
            assert {(await future).step for future in futures} == {number}
            assert (await members[number % 3].step()).step_number == number
            if number in (4, 8):
                await killable.die_and_return()
        found = await weights_of(first, run, tmp_path / "m")
    assert_weights(found, trained(killable.networks, steps), **CLOSE)


async def test_clients_that_call_nothing_send_again_what_others_may_wait_for(killable):
    async with seqloom.AsyncClient(killable.address, timeout=60) as client:
        run = await client.create_run("m", optimizer=ADAM, checkpoint_interval=0)
        other = await client.attach_run(run.id)
        await other.forward_backward(*call_of(1))
        await run.forward_backward(*call_of(2))
        assert (await run.step()).step_number == 1
        await killable.die_and_return()
        async with asyncio.timeout(30):
            while (await run.info()).step != 1:  # noqa: ASYNC110 - what is waited for sets no event
                await asyncio.sleep(0.01)
        assert await other.forward_backward(*call_of(4))
        assert (await run.step()).step_number == 2


async def test_a_run_whose_other_client_never_returns_says_what_it_waits_for(killable):
    async with seqloom.AsyncClient(killable.address, timeout=60) as client:
        run = await client.create_run("m", optimizer=ADAM, checkpoint_interval=0)
        async with seqloom.AsyncClient(killable.address, timeout=60) as passing:
            await (await passing.attach_run(run.id)).forward_backward(*call_of(1))
        await run.forward_backward(*call_of(2))
        assert (await run.step()).step_number == 1
        await killable.die_and_return()
        with pytest.raises((seqloom.DeadlineExceeded, seqloom.Unavailable)):
            await run.forward_backward(*call_of(3), timeout=2)
        info = await run.info()
        assert (info.step, info.durable_step) == (0, 0)
        assert "waits for calls" in info.waiting_for


async def test_a_server_that_does_not_come_back_is_unavailable_when_the_time_is_up(killable):
    async with seqloom.AsyncClient(killable.address, timeout=60) as client:
        run = await client.create_run("m", optimizer=ADAM)
        await run.forward_backward(*call_of(1))
        await asyncio.to_thread(killable.process.end, signal.SIGKILL)
        with pytest.raises(seqloom.Unavailable):
            await run.step(timeout=1)
        await asyncio.to_thread(killable.start)
        later = await run.forward_backward(*call_of(2))
        info = await run.info()  # the step whose caller gave it up was sent before that, or never
        assert (later.step, info.accumulated_calls) == (info.step + 1, 2 - info.step)


async def test_an_orderly_end_of_the_server_saves_the_run(killable):
    async with seqloom.AsyncClient(killable.address, timeout=60) as client:
        run = await client.create_run("m", optimizer=ADAM, checkpoint_interval=0)
        for n in range(3):
            await run.forward_backward(*call_of(n))
            await run.step()
        await run.forward_backward(*call_of(7))
        status, _ = await asyncio.to_thread(killable.process.end, signal.SIGTERM)
        assert status == 0
        await asyncio.to_thread(killable.start)
        info = await run.info()
        assert (info.step, info.durable_step, info.accumulated_calls) == (3, 3, 1)
        assert (await run.step()).step_number == 4


async def test_a_run_that_somebody_deleted_is_not_found_by_calls_that_wait(serve, tmp_path):
    async with (
        serve({"m": SPEC}, runs=str(tmp_path / "runs")) as served,
        proxy_of(served.address) as proxy,
        seqloom.AsyncClient(proxy.address, timeout=30) as client,
        seqloom.AsyncClient(served.address) as other,
    ):
        run = await client.create_run("m", optimizer=ADAM)
        proxy.cut()
        await other.delete_run(run.id)
        futures = [run.forward_backward(*call_of(n)) for n in range(70)]
        for future in futures:
            with pytest.raises(seqloom.NotFound) as gone:
                await future
            assert gone.value.reason == "RUN_NOT_FOUND"


async def test_too_much_for_now_is_repeated_and_done_once(serve, tmp_path):
    spec = ModelSpec(cell="elman", input_size=5, hidden_size=6, output_size=4)
    options = {"runs": str(tmp_path / "runs"), "max_held_calls": 2}
    async with serve({"m": spec}, **options) as served, seqloom.AsyncClient(served.address, timeout=60) as client:
        run = await client.create_run("m", optimizer=seqloom.SGD(0.1))
        results = await asyncio.gather(*(run.forward_backward(*call_of(n)) for n in range(40)))
        assert {result.step for result in results} == {1}
        assert (await run.info()).accumulated_calls == 40


async def test_kill_9_after_a_step_that_overflowed_brings_nothing_back_that_it_dropped(killable, tmp_path):
    async with seqloom.AsyncClient(killable.address, timeout=60) as client:
        runs = [await client.create_run("m", optimizer=seqloom.SGD(0.1), checkpoint_interval=0) for _ in range(2)]
        members = [(run, await client.attach_run(run.id)) for run in runs]  # two clients of each
        for killed, (first, second) in enumerate(members):
            await first.forward_backward(*call_of(1))
            await first.step()
            await second.forward_backward(*call_of(2))
            await first.forward_backward(*call_of(3))
            with pytest.raises(seqloom.InvalidArgument) as refused:
                await first.step(learning_rate=1.7e308)
            assert refused.value.reason == "OVERFLOW"
            await first.forward_backward(*call_of(4))
            assert (await first.step()).step == 2
            await second.forward_backward(*call_of(5))
            if killed:
                await killable.die_and_return()
            await first.forward_backward(*call_of(6))
            assert (await second.step()).step == 3
            assert (await first.info()).accumulated_calls == 0
        undisturbed, found = [await weights_of(client, run, tmp_path / run.id) for run in runs]
    for name, parameter in undisturbed.items():
        # calls of two clients that are sent again may share a batch, which sums them in another order
        np.testing.assert_allclose(found[name], parameter, **CLOSE, err_msg=name)


async def test_a_client_that_calls_nothing_sends_again_what_a_server_lost_that_another_client_found_first(killable):
    async with seqloom.AsyncClient(killable.address, timeout=30) as client:
        first = await client.create_run("m", optimizer=seqloom.SGD(0.1), checkpoint_interval=0)
        second = await client.attach_run(first.id)
        for n in range(4):
            await first.forward_backward(*call_of(1))
            await second.forward_backward(*call_of(2))
            await first.step()
            await second.forward_backward(*call_of(3))
            await killable.die_and_return()
            await first.forward_backward(*call_of(4))  # over the connection of both, which this restores
            assert (await first.step()).step == 2 * n + 2  # waits for what the second one has to send again


async def test_a_run_that_is_found_broken_is_told_at_once_and_goes_on_when_it_is_mended(killable, tmp_path):
    async with seqloom.AsyncClient(killable.address, timeout=math.inf) as client:
        run = await client.create_run("m", optimizer=ADAM)
        await run.forward_backward(*call_of(1))
        assert (await run.step()).step == 1
        state = tmp_path / "runs" / run.id / "latest" / "state.json"
        whole = state.read_bytes()
        state.write_bytes(whole[:-9])
        await killable.die_and_return()
        async with asyncio.timeout(30):
            for call in (run.step, lambda: run.forward_backward(*call_of(2))):
                with pytest.raises(seqloom.InvalidArgument) as broken:
                    await call()
                assert broken.value.reason == "RUN_BROKEN"
        state.write_bytes(whole)
        await killable.die_and_return()
        await run.forward_backward(*call_of(2))
        assert (await run.step()).step == 2
