"""Training in company: gradients out of shared batches, runs of many callers, live streams beside a very long call."""

import asyncio
import contextlib
import itertools
import random

import numpy as np
import psutil
import pytest
import seqloom
import torch
from helpers.autograd_reference import Reference
from helpers.gate import Gate
from helpers.real_server import until, write_models
from helpers.run_helpers import assert_weights, weights_of
from helpers.tolerances import near
from seqloom_server.nn.spec import ModelSpec

TIGHT = {"float64": {"rtol": 1e-8, "atol": 1e-10}, "float32": {"rtol": 1e-3, "atol": 1e-4}}
OUTPUTS = near(rtol=1e-4, atol=1e-4)


def example_of(seed, steps, spec):
    """One sequence and a label for each of its steps, of which some do not count."""
    draw = np.random.default_rng(seed)
    xs = draw.standard_normal((steps, spec.input_size)).astype(spec.dtype)
    return xs, np.where(draw.random(steps) < 0.1, -100, draw.integers(0, spec.output_size, steps))


def autograd_of(network, examples):
    """The gradient of the summed cross-entropy by parameter, in float64."""
    reference = Reference(network)
    reference.total(*zip(*examples, strict=True)).backward()
    return {name: parameter.grad for name, parameter in reference.parameters.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
async def test_24_concurrent_calls_share_passes_and_each_gets_its_own_gradients(serve, cell, dtype):
    spec = ModelSpec(cell, input_size=20, hidden_size=192, output_size=30, dtype=dtype)
    examples = [example_of(seed, 30 + 11 * seed % 90, spec) for seed in range(24)]
    async with serve({"m": spec}) as served, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(seqloom.AsyncClient(served.address)) for _ in range(25)]
        await asyncio.gather(*(client.model("m") for client in clients))  # all are connected

        def passes():
            return served.value("batch_sequences_count", op="train", model="m")

        gate = Gate(served.engine.registry.current("m"))  # the device is busy, as that of a busy server is
        other = asyncio.create_task(clients[24].infer("m", [examples[0][0]]))
        await gate.arrived()
        before = passes()
        calls = [
            asyncio.create_task(client.gradients("m", [x], [y]))
            for client, (x, y) in zip(clients, examples, strict=False)
        ]
        await until(lambda: served.value("queue_items", op="train") == 24)
        gate.open()
        every = await asyncio.gather(*calls)
        await other
        assert passes() - before <= 6
        assert served.value("batch_sequences_sum", op="train", model="m") == 24
        whole = await clients[0].gradients("m", *zip(*examples, strict=True))
        for own, example in zip(every, examples, strict=True):
            assert_weights(own.parameters, autograd_of(served.networks["m"], [example]), **TIGHT[dtype])
        for name, gradient in whole.parameters.items():
            together = sum(own.parameters[name] for own in every)
            scale = np.abs(gradient).max()
            np.testing.assert_allclose(together, gradient, rtol=0, atol=scale * (1e-5 if dtype == "float32" else 1e-12))
        assert whole.loss == pytest.approx(sum(own.loss for own in every), rel=1e-6)


STEPS, SEQUENCES, CALLERS = 50, 16, 8
OPTIMIZERS = {
    "sgd": (seqloom.SGD(0.02, momentum=0.9), lambda parameters: torch.optim.SGD(parameters, 0.02, momentum=0.9)),
    "adam": (seqloom.Adam(0.003), lambda parameters: torch.optim.Adam(parameters, 0.003)),
}


async def one_caller(callers, examples, step):
    """All in one call."""
    return [await callers[0].forward_backward(*zip(*examples, strict=True))]


async def one_caller_in_pieces(callers, examples, step):
    """A call for each few of them, which nobody waits for."""
    ends = [0, 1, 6, 8, 15, SEQUENCES]
    pieces = [examples[start:end] for start, end in itertools.pairwise(ends)]
    return await asyncio.gather(*(callers[0].forward_backward(*zip(*piece, strict=True)) for piece in pieces))


async def many_callers(callers, examples, step):
    """Each caller has its own, and they arrive in another order each time."""
    order = random.Random(step).sample(range(CALLERS), CALLERS)
    calls = []
    for n in order:
        calls.append(callers[n].forward_backward(*zip(*examples[n::CALLERS], strict=True)))
        if n % 3 == 0:
            await calls[-1]
    return await asyncio.gather(*calls)


async def many_callers_in_pieces(callers, examples, step):
    """Each sequence is a call, in any order over callers."""
    order = random.Random(step).sample(range(SEQUENCES), SEQUENCES)
    return await asyncio.gather(
        *(callers[n % CALLERS].forward_backward(*([part] for part in examples[n])) for n in order)
    )


WAYS = [one_caller, one_caller_in_pieces, many_callers, many_callers_in_pieces]


@pytest.mark.parametrize(
    ("dtype", "optimizer", "tolerance"),
    [("float64", "sgd", 1e-9), ("float64", "adam", 1e-9), ("float32", "sgd", 1e-5), ("float32", "adam", 1e-4)],
)
async def test_the_same_data_trains_the_same_weights_however_it_comes(serve, tmp_path, dtype, optimizer, tolerance):
    spec = ModelSpec("elman", input_size=6, hidden_size=12, output_size=5, dtype=dtype)
    data = [[example_of(100 * step + n, 2 + 5 * n % 13, spec) for n in range(SEQUENCES)] for step in range(STEPS)]
    chosen, torchs = OPTIMIZERS[optimizer]
    async with serve({way.__name__: spec for way in WAYS}) as served, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(seqloom.AsyncClient(served.address)) for _ in range(CALLERS)]

        async def trained(way):
            run = await clients[0].create_run(way.__name__, optimizer=chosen, clip_norm=5.0)
            callers = [run, *[await client.attach_run(run.id) for client in clients[1:]]]
            for step in range(STEPS):
                results = await way(callers, data[step], step)
                assert {result.step for result in results} == {step + 1}
                await callers[step % CALLERS].step(expected_step=step + 1)
            return await weights_of(clients[0], run, tmp_path / way.__name__)

        weights = [await trained(way) for way in WAYS]
        reference = Reference(served.networks[WAYS[0].__name__])
    reference.train(
        torchs(list(reference.parameters.values())), [[tuple(zip(*step, strict=True))] for step in data], clip_norm=5.0
    )
    for other in weights[1:]:
        assert_weights(other, weights[0], rtol=0, atol=tolerance)
    assert_weights(weights[0], reference.parameters, rtol=0, atol=tolerance)


async def test_live_frames_are_right_and_in_order_beside_trainers_that_fill_the_server(serve):
    spec = ModelSpec("gru", input_size=8, hidden_size=64, output_size=10)
    async with serve({"m": spec}) as served, seqloom.AsyncClient(served.address) as client:
        over = asyncio.Event()

        async def train(seed):
            run = await client.create_run("m", optimizer=seqloom.Adam(0.01))
            for step in range(8):
                for n in range(4):
                    run.forward_backward(
                        *zip(*(example_of(seed + 7 * step + n + k, 40, spec) for k in range(8)), strict=True)
                    )
                assert (await run.step()).step_number == step + 1

        async def speak(number):
            x, _ = example_of(1000 + number, 3000, spec)
            sizes = random.Random(number)
            done, got = 0, []
            async with client.stream("m") as stream:
                while not over.is_set() and done < len(x) - 10:
                    size = sizes.randrange(1, 10)
                    await stream.send(x[done : done + size])
                    chunk = await stream.receive()
                    assert chunk.first_step == done
                    got.append(chunk.outputs)
                    done += size
            np.testing.assert_allclose(np.concatenate(got), served.expected("m", x[:done])[0], **OUTPUTS)
            return len(got)

        speakers = [asyncio.create_task(speak(number)) for number in range(6)]
        await asyncio.gather(train(0), train(5000))
        over.set()
        chunks = await asyncio.gather(*speakers)
        assert served.value("optimizer_steps_total", model="m") == 16
        assert min(chunks) >= served.value("batch_sequences_count", op="train", model="m")  # nobody was starved


async def test_a_call_of_10_000_steps_gives_way_to_live_frames_again_and_again(serve):
    spec = ModelSpec("elman", input_size=8, hidden_size=128, output_size=10, dtype="float64")
    x, y = example_of(1, 10_000, spec)
    names = [f"{name}_{part}" for name in ("queue_duration_seconds", "compute_duration_seconds")
             for part in ("sum", "count")]  # fmt: skip
    async with serve({"m": spec}) as served, seqloom.AsyncClient(served.address, timeout=300) as client:
        over = asyncio.Event()

        def live(name):
            return served.value(name, op="stream", model="m")

        async def speak(number):
            frames, _ = example_of(number, 10, spec)
            async with client.stream("m") as stream:
                while not over.is_set():
                    await stream.send(frames)
                    await stream.receive()

        speakers = [asyncio.create_task(speak(number)) for number in range(4)]
        await until(lambda: live("compute_duration_seconds_count") >= 20)
        before = {name: live(name) for name in names}
        gradients = await client.gradients("m", [x], [y], parameter_form="dense")
        grown = {name: live(name) - before[name] for name in names}
        over.set()
        await asyncio.gather(*speakers)
        expected = autograd_of(served.networks["m"], [(x, y)])
    assert_weights(gradients.parameters, expected, **TIGHT["float64"])
    slices = grown["compute_duration_seconds_count"]
    assert slices >= 10
    # on average a chunk waited for less than two pieces of the call, which ran between the slices of live frames
    piece = (gradients.timing.compute_seconds) / slices
    waited = grown["queue_duration_seconds_sum"] / grown["queue_duration_seconds_count"]
    assert waited < 2 * piece + grown["compute_duration_seconds_sum"] / slices


async def test_a_call_of_10_000_steps_takes_memory_for_its_steps_alone(server_process, tmp_path):
    spec = ModelSpec("elman", input_size=160, hidden_size=256, output_size=500)
    network = write_models(tmp_path, {"m": spec})["m"]
    x, y = example_of(1, 10_000, spec)
    server = await asyncio.to_thread(server_process, "--models", tmp_path)
    memory = psutil.Process(server.process.pid).memory_info
    async with seqloom.AsyncClient(server.address, timeout=300) as client:
        short = await client.gradients("m", [x[:100]], [y[:100]])
        before = most = memory().rss
        call = asyncio.create_task(client.gradients("m", [x], [y], parameter_form="norms"))
        while not call.done():
            most = max(most, memory().rss)
            await asyncio.wait({call}, timeout=0.005)
        norms = (await call).norms
    activations = len(x) * (160 + 256 + 500) * 4
    assert most - before < 8 * activations  # a gradient of the parameters for each step would be 250 times as much
    assert_weights(short.parameters, autograd_of(network, [(x[:100], y[:100])]), **TIGHT["float32"])
    for name, gradient in autograd_of(network, [(x, y)]).items():
        assert norms[name] == pytest.approx(gradient.norm().item(), rel=1e-3)
