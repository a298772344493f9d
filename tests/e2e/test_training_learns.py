"""What other training services got wrong, as tests: four bugs of SkyRL's, by their pull requests."""

import asyncio

import numpy as np
import pytest
import seqloom
import torch
from helpers.autograd_reference import Reference
from helpers.breaking_proxy import proxy_of
from helpers.real_server import until
from helpers.run_helpers import SPEC, assert_weights, call_of, weights_of
from seqloom_server.nn.spec import ModelSpec

EXACT = {"rtol": 1e-9, "atol": 1e-12}
WIDE = ModelSpec("elman", input_size=256, hidden_size=8, output_size=5, dtype="float64")  # 2 KiB a frame


def wide_call(seed, *lengths):
    draw = np.random.default_rng(seed)
    return [draw.standard_normal((n, 256)) for n in lengths], [draw.integers(0, 5, n) for n in lengths]


def norm_of(network, xs, labels):
    """The norm of the gradient that a step of this one call applies."""
    reference = Reference(network)
    reference.total(xs, labels).backward()
    return torch.nn.utils.get_total_norm([parameter.grad for parameter in reference.parameters.values()]).item()


async def test_a_call_that_is_sent_again_adds_its_gradient_once(serve, tmp_path):
    """SkyRL 2035: a call that was sent again added its gradient twice."""
    async with (
        serve({"m": SPEC}) as served,
        proxy_of(served.address) as proxy,
        seqloom.AsyncClient(proxy.address, timeout=30) as client,
    ):
        run = await client.create_run("m", optimizer=seqloom.SGD(0.1))

        async def without_its_reply(call, done):
            """The result of a call whose first reply never comes, as the connection is lost after it is done."""
            future = asyncio.ensure_future(call)
            await until(done)
            proxy.cut()
            proxy.open.set()
            return await future

        repeats = 0
        for number in (1, 2):
            proxy.open.clear()
            gradient = run.forward_backward(*call_of(number))
            trained = 2 * number
            await without_its_reply(gradient, lambda n=trained: served.value("batch_sequences_sum", op="train") >= n)
            assert served.value("batch_sequences_sum", op="train") == trained
            assert served.value("deduplicated_calls_total", model="m") > repeats
            repeats = served.value("deduplicated_calls_total", model="m")
            proxy.open.clear()
            stepped = await without_its_reply(
                run.step(), lambda n=number: served.value("optimizer_steps_total", model="m") >= n
            )
            assert stepped.step_number == number
            assert served.value("deduplicated_calls_total", model="m") > repeats
            repeats = served.value("deduplicated_calls_total", model="m")
        reference = Reference(served.networks["m"])
        reference.train(torch.optim.SGD(reference.parameters.values(), 0.1), [[call_of(1)], [call_of(2)]])
        assert (await run.info()).step == 2
        assert_weights(await weights_of(client, run, tmp_path / "m"), reference.parameters, **EXACT)


async def test_a_call_that_is_cut_keeps_all_of_its_parts(serve):
    """SkyRL 2008: of a call that was split only the last part was kept."""
    xs, labels = wide_call(1, 700, 500, 300)
    assert sum(x.nbytes for x in xs) > 2 << 20  # it travels in three messages or more
    async with (
        serve({"m": WIDE}, max_activation_bytes=3 << 20) as served,  # and is run in groups of sequences
        seqloom.AsyncClient(served.address, timeout=30) as client,
    ):
        run = await client.create_run("m", optimizer=seqloom.SGD(0.1))
        result = await run.forward_backward(xs, labels)
        stepped = await run.step()
        own = await client.gradients("m", xs, labels)
        reference = Reference(served.networks["m"])
        reference.total(xs, labels).backward()
    alone = [reference.loss(x, y, "cross_entropy").item() for x, y in zip(xs, labels, strict=True)]
    np.testing.assert_allclose(result.losses, alone, **EXACT)
    np.testing.assert_allclose(own.losses, alone, **EXACT)
    assert stepped.gradient_norm == pytest.approx(norm_of(served.networks["m"], xs, labels), rel=1e-9)
    assert_weights(own.parameters, {name: p.grad for name, p in reference.parameters.items()}, **EXACT)


async def test_a_step_waits_for_the_gradients_that_were_sent_before_it(serve):
    """SkyRL 1489: a step ran before its gradient, which was longer on its way."""
    async with serve({"m": WIDE}) as served, seqloom.AsyncClient(served.address, timeout=30) as client:
        for seed in range(4):
            run = await client.create_run("m", optimizer=seqloom.SGD(0.1))
            call = wide_call(seed, 900, 600)
            gradient = run.forward_backward(*call)
            step = asyncio.ensure_future(run.step())  # a message of some bytes, after one of 3 MB
            await asyncio.sleep(0)  # it is sent
            next_one = run.forward_backward(*wide_call(seed, 2))
            assert (await gradient).step == 1
            stepped = await step
            assert stepped.step_number == 1
            assert stepped.gradient_norm == pytest.approx(norm_of(served.networks["m"], *call), rel=1e-9)
            assert (await next_one).step == 2


async def test_results_keep_the_order_of_sequences_of_unequal_lengths(serve):
    """SkyRL 2043: results lost their order where lengths were unequal."""
    draw = np.random.default_rng(0)
    calls = []
    for count in (6, 1, 4, 7):
        xs = [draw.standard_normal((int(n), SPEC.input_size)) for n in draw.permutation(11)[:count] + 1]
        calls.append((xs, [draw.integers(0, SPEC.output_size, len(x)) for x in xs]))
    async with serve({"m": SPEC}) as served, seqloom.AsyncClient(served.address, timeout=30) as client:
        run = await client.create_run("m", optimizer=seqloom.SGD(0.1))
        wrt = ("inputs", "outputs", "hidden", "initial_state")
        every = await asyncio.gather(*(client.gradients("m", *call, wrt=wrt) for call in calls))
        results = await asyncio.gather(*(run.forward_backward(*call) for call in calls))
        for (xs, labels), own, result in zip(calls, every, results, strict=True):
            for n, (x, y) in enumerate(zip(xs, labels, strict=True)):
                alone = await client.gradients("m", [x], [y], wrt=wrt)
                expected = Reference(served.networks["m"]).loss(x, y, "cross_entropy").item()
                np.testing.assert_allclose([own.losses[n], result.losses[n]], expected, **EXACT)
                np.testing.assert_allclose(own.inputs[n], alone.inputs[0], **EXACT)
                np.testing.assert_allclose(own.outputs[n], alone.outputs[0], **EXACT)
                np.testing.assert_allclose(own.hidden[n], alone.hidden[0], **EXACT)
                np.testing.assert_allclose(own.initial_state.hidden[:, n], alone.initial_state.hidden[:, 0], **EXACT)
                np.testing.assert_allclose(own.final_state.hidden[:, n], alone.final_state.hidden[:, 0], **EXACT)
