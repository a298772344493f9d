"""What would overflow in a run is refused: the run is as it was before, can be saved, published and started again."""

import asyncio

import numpy as np
import pytest
import seqloom
from helpers.run_helpers import assert_weights, weights_of
from seqloom_server.nn.spec import ModelSpec

SPEC = ModelSpec(cell="gru", input_size=5, hidden_size=6, output_size=4)
SETTINGS = {
    "sgd, a weight": (seqloom.SGD(0.1), 1e30, "weight"),
    "momentum, a weight": (seqloom.SGD(0.1, momentum=0.9), 1e30, "weight"),
    "adam, its second moment": (seqloom.Adam(1e-3), None, "exp_avg_sq"),
    "adamw, its second moment": (seqloom.AdamW(1e-3), None, "exp_avg_sq"),
}


@pytest.fixture
async def client(serve, tmp_path):
    async with (
        serve({"m": SPEC}, runs=str(tmp_path / "runs")) as served,
        seqloom.AsyncClient(served.address, timeout=30) as client,
    ):
        client.served = served
        yield client


def call_of(seed, scale=1.0):
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((7, 5)).astype("f4")
    return {"xs": [x], "output_gradients": [(draw.standard_normal((7, 4)) * scale).astype("f4")]}


@pytest.mark.parametrize("what", SETTINGS)
async def test_a_step_that_would_overflow_leaves_the_run_as_one_that_never_had_it(client, tmp_path, what):
    optimizer, rate, name = SETTINGS[what]
    run, twin = [await client.create_run("m", optimizer=optimizer, clip_norm=None) for _ in range(2)]
    for number in range(1, 4):
        for each in (run, twin):
            await each.forward_backward(**call_of(number))
            assert (await each.step()).step == number
        await run.forward_backward(**call_of(9, 1e25))
        with pytest.raises(seqloom.InvalidArgument, match=f"step {number + 1} was not applied: .*{name}") as refused:
            await run.step(rate)
        assert refused.value.reason == "OVERFLOW"
        info = await run.info()
        assert (info.step, info.accumulated_calls) == (number, 0)
        with pytest.raises(seqloom.InvalidArgument) as nothing:
            await run.step()
        assert nothing.value.reason == "NOTHING_ACCUMULATED"
        assert await run.save() == number
    assert_weights(
        await weights_of(client, run, tmp_path / "a"), await weights_of(client, twin, tmp_path / "b"), rtol=0, atol=0
    )
    await run.close()


async def test_a_call_that_would_overflow_what_is_accumulated_is_refused_and_the_rest_can_be_saved(client, tmp_path):
    run, twin = [await client.create_run("m", optimizer=seqloom.SGD(1e-30)) for _ in range(2)]
    for each in (run, twin):
        await each.forward_backward(**call_of(1, 5e37))

    async def add_until_it_is_too_much():
        while True:
            await run.forward_backward(**call_of(1, 5e37))
            await twin.forward_backward(**call_of(1, 5e37))

    with pytest.raises(seqloom.InvalidArgument, match="summed over the calls of step 1, would overflow") as refused:
        await add_until_it_is_too_much()
    assert refused.value.reason == "OVERFLOW"
    assert (await run.info()).accumulated_calls == (await twin.info()).accumulated_calls > 0
    await run.save("here")
    await run.step()
    await twin.step()
    assert_weights(
        await weights_of(client, run, tmp_path / "a"), await weights_of(client, twin, tmp_path / "b"), rtol=0, atol=0
    )


async def test_many_callers_of_whom_one_overflows_the_sum_hear_the_same_as_the_accumulator_does(client):
    run = await client.create_run("m", optimizer=seqloom.SGD(1e-30))
    outcomes = await asyncio.gather(
        *(run.forward_backward(**call_of(1, 5e37)) for _ in range(20)), return_exceptions=True
    )
    refused = [each for each in outcomes if isinstance(each, seqloom.InvalidArgument)]
    assert {each.reason for each in refused} == {"OVERFLOW"}
    assert (await run.info()).accumulated_calls == len(outcomes) - len(refused)
    await run.save()


async def test_weights_that_are_not_finite_are_not_published(client):
    run = await client.create_run("m", optimizer=seqloom.SGD(0.1))
    (alive,) = client.served.engine.runs.all()
    alive.weights.network.parameters()["output.bias"][1] = np.inf  # by a fault that nobody knows yet
    with pytest.raises(seqloom.InvalidArgument, match=r"output\.bias holds a number that is not finite") as refused:
        await run.publish()
    assert refused.value.reason == "OVERFLOW"
    assert (await client.model("m")).weights_version == 1
    assert np.isfinite((await client.infer("m", call_of(1)["xs"])).outputs[0]).all()
    await run.delete()


async def test_a_rate_of_0_for_a_step_is_a_rate(client, tmp_path):
    run = await client.create_run("m", optimizer=seqloom.AdamW(0.1))
    before = await weights_of(client, run, tmp_path / "before")
    await run.forward_backward(**call_of(1))
    assert (await run.step(learning_rate=0)).step == 1
    assert_weights(await weights_of(client, run, tmp_path / "after"), before, rtol=0, atol=0)
    await run.forward_backward(**call_of(1))
    await run.step()
    moved = await weights_of(client, run, tmp_path / "moved")
    assert any((moved[name] != before[name]).any() for name in before)
