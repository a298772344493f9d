"""Training where memory is short: batches are halved, calls that do not fit alone refused, what is done stays done."""

import asyncio

import numpy as np
import pytest
import seqloom
from helpers.real_server import until
from helpers.run_helpers import SPEC, assert_weights, call_of, weights_of
from helpers.short_memory import fail
from helpers.training_gate import TrainingGate
from seqloom_server.engine.device.transfers import InPlace
from seqloom_server.engine.training import batch_programs
from seqloom_server.engine.training.run_weights import RunWeights
from seqloom_server.nn.optim import Optimizer


@pytest.fixture
async def client(serve, tmp_path):
    async with (
        serve({"m": SPEC}, runs=str(tmp_path / "runs")) as served,
        seqloom.AsyncClient(served.address, timeout=60, retries=0) as client,
    ):
        client.served = served
        yield client


class ShortMemory:
    """Lets through batches of at most so many calls. batches: the calls of each that ran."""

    def __init__(self, patch, most):
        self.most, self.batches = most, []
        inner = batch_programs.gradients

        def gradients(network, calls, **options):
            yield
            if len(calls) > self.most:
                fail()
            self.batches.append(len(calls))
            return (yield from inner(network, calls, **options))

        patch.setattr(batch_programs, "gradients", gradients)


async def together(served, calls):
    """Begins the calls so that all but the first are in one batch; returns their outcomes."""
    gate = TrainingGate(served.engine)
    first, *others = calls
    tasks = [asyncio.create_task(first())]
    await gate.arrived()
    tasks += [asyncio.create_task(call()) for call in others]
    async with asyncio.timeout(60):
        while served.value("queue_items", op="train") < len(others):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    gate.open()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [len(jobs) for jobs in gate.batches[:2]] == [1, len(others)]
    return outcomes


def begin(run, call):
    async def wait():
        return await run.forward_backward(*call)

    return wait


@pytest.mark.parametrize("most", [1, 2, 4])
async def test_a_batch_of_gradient_calls_is_halved_and_each_gets_its_own(client, monkeypatch, most):
    calls = [call_of(seed) for seed in range(9)]
    expected = [await client.gradients("m", xs, labels) for xs, labels in calls]
    short = ShortMemory(monkeypatch, most)
    outcomes = await together(client.served, [lambda call=call: client.gradients("m", *call) for call in calls])
    for got, wanted in zip(outcomes, expected, strict=True):
        assert not isinstance(got, BaseException), got
        np.testing.assert_allclose(got.losses, wanted.losses, rtol=1e-9)
        for name in SPEC.parameter_shapes():
            np.testing.assert_allclose(got.parameters[name], wanted.parameters[name], rtol=1e-7, atol=1e-12)
    assert short.batches == [1] + [most] * (8 // most)


async def test_calls_that_do_not_fit_alone_are_overloaded_however_many_and_the_engine_lives_on(client, monkeypatch):
    with monkeypatch.context() as patch:
        ShortMemory(patch, 0)
        for seed in range(12):
            with pytest.raises(seqloom.Overloaded) as refused:
                await client.gradients("m", *call_of(seed))
            assert refused.value.retry_after > 0
    assert client.served.value("rejected_total", reason="memory") == 12
    assert client.served.engine.alive
    assert np.isfinite((await client.gradients("m", *call_of(1))).loss)


async def test_calls_on_a_run_that_are_halved_are_each_accumulated_once(client, monkeypatch, tmp_path):
    run, twin = [await client.create_run("m", optimizer=seqloom.SGD(0.1), clip_norm=None) for _ in range(2)]
    calls = [call_of(seed) for seed in range(7)]
    for call in calls:
        await twin.forward_backward(*call)
    await twin.step()
    short = ShortMemory(monkeypatch, 2)

    outcomes = await together(client.served, [begin(run, call) for call in calls])
    assert not [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert short.batches == [1, 1, 2, 1, 2]
    assert (await run.info()).accumulated_calls == 7
    assert (await run.step()).step == 1
    found, wanted = await weights_of(client, run, tmp_path / "a"), await weights_of(client, twin, tmp_path / "b")
    assert_weights(found, wanted, rtol=1e-9, atol=1e-12)


async def test_a_step_whose_checkpoint_finds_no_memory_is_applied_and_said_so(client, monkeypatch):
    run = await client.create_run("m", optimizer=seqloom.SGD(0.1), checkpoint_interval=1)

    def snapshot(*_):
        yield
        fail()

    with monkeypatch.context() as patch:
        patch.setattr(RunWeights, "snapshot", snapshot)
        for step in range(1, 8):
            await run.forward_backward(*call_of(step))
            assert (await run.step()).step == step
        assert client.served.value("run_save_failures_total") == 7
        xs, _ = call_of(8)
        await run.forward_backward(xs, output_gradients=[np.full((len(x), 4), 1e200) for x in xs])
        with pytest.raises(seqloom.InvalidArgument) as refused:
            await run.step()  # whose refusal has no checkpoint, either
        assert refused.value.reason == "OVERFLOW"
        assert client.served.value("run_save_failures_total") == 8
    await run.forward_backward(*call_of(9))
    assert (await run.step()).step == 8
    assert await run.save() == 8


async def test_a_fault_in_a_later_half_of_a_batch_ends_its_calls_and_not_those_before(client, monkeypatch, tmp_path):
    run, twin = [await client.create_run("m", optimizer=seqloom.SGD(0.1), clip_norm=None) for _ in range(2)]
    calls = [call_of(seed) for seed in range(7)]
    for call in calls[:4]:
        await twin.forward_backward(*call)
    await twin.step()
    with monkeypatch.context() as patch:
        short = ShortMemory(patch, 3)
        halves = batch_programs.gradients

        def gradients(network, calls, **options):
            if len(short.batches) == 2:
                raise ValueError("a fault")
            return (yield from halves(network, calls, **options))

        patch.setattr(batch_programs, "gradients", gradients)
        outcomes = await together(client.served, [begin(run, call) for call in calls])
    assert short.batches == [1, 3]
    assert not [outcome for outcome in outcomes[:4] if isinstance(outcome, BaseException)]
    assert all(isinstance(outcome, seqloom.Internal) for outcome in outcomes[4:])
    await until(lambda: client.served.engine._device_thread._failures == 1)  # counted after the callers were told
    assert (await run.info()).accumulated_calls == 4
    assert (await run.step()).step == 1
    await until(lambda: client.served.engine._device_thread._failures == 0)
    found, wanted = await weights_of(client, run, tmp_path / "a"), await weights_of(client, twin, tmp_path / "b")
    assert_weights(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("where", ["start", "stop"])
async def test_a_step_whose_time_finds_no_memory_is_applied_and_said_so(client, monkeypatch, where):
    """As a GPU's events are made where they are first used."""
    run = await client.create_run("m", optimizer=seqloom.SGD(0.1))
    device = client.served.engine._device_thread

    class Staging(InPlace):
        def timer(self):
            if where == "start":
                fail()
            return fail

    monkeypatch.setattr(device, "_staging", Staging())
    for step in range(1, 8):
        await run.forward_backward(*call_of(step))
        assert (await run.step()).step == step
    assert client.served.engine.alive


async def test_a_load_that_finds_no_memory_leaves_the_run_and_its_steps_as_they_were(client, monkeypatch):
    run = await client.create_run("m", optimizer=seqloom.SGD(0.1))
    await run.save("a")
    for step in range(1, 4):
        await run.forward_backward(*call_of(step))
        await run.step()
    weights = client.served.engine.runs.get(run.id).weights

    def no_room(*_):
        fail()

    with monkeypatch.context() as patch:
        patch.setattr(Optimizer, "_cut", no_room)
        before = {name: tensor.clone() for name, tensor in weights.network.parameters().items()}
        with pytest.raises(seqloom.Internal) as refused:
            await run.load("a")
    assert refused.value.reason == "NOT_DONE"
    assert all(bool((before[name] == tensor).all()) for name, tensor in weights.network.parameters().items())
    assert (await run.info()).step == 3
    assert [record.step for record in weights.journal.read(0)] == [1, 2, 3]
    await run.load("a")
    assert (await run.info()).step == 0
    assert weights.journal.read(0) == []
