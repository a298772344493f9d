"""`gradients` over a real server: every kind of it against autograd, whatever way it travels."""

import asyncio

import numpy as np
import pytest
import seqloom
import torch
from helpers.autograd_reference import Reference, loss_of
from helpers.breaking_proxy import proxy_of
from helpers.frames import noise
from helpers.real_server import until
from helpers.threads import in_threads
from seqloom_server.nn.spec import ModelSpec

WRT = ("parameters", "inputs", "initial_state", "outputs", "hidden")
CELLS = {
    cell: ModelSpec(cell=cell, input_size=5, hidden_size=7, output_size=4, num_layers=2, dtype="float64")
    for cell in ("elman", "gru", "lstm")
}
SINGLE = ModelSpec(cell="gru", input_size=5, hidden_size=7, output_size=4)
LENGTHS = (6, 9, 4)
XS = [noise(steps, 5, seed) for seed, steps in enumerate(LENGTHS)]
LABELS = [np.random.default_rng(9).integers(0, 4, steps) for steps in LENGTHS]
TARGETS = {
    "cross_entropy": [np.where(np.arange(len(labels)) == 2, -100, labels) for labels in LABELS],
    "mse": [noise(steps, 4, 20 + steps) for steps in LENGTHS],
    "ctc": [np.array([1, 1, 3]), np.array([2, 3]), np.array([], int)],
}
EXACT = {"rtol": 1e-8, "atol": 1e-10}


def state_of(spec, count, seed=0):
    """Of `count` sequences, in the SDK's form."""
    numbers = np.random.default_rng(seed).standard_normal((2, spec.num_layers, count, spec.hidden_size))
    return seqloom.State(numbers[0], numbers[1] if spec.cell == "lstm" else None)


def parts_of(state):
    return [part for part in (state.hidden, state.cell) if part is not None]


@pytest.fixture
async def cells(serve):
    async with serve({**CELLS, "single": SINGLE}) as served, seqloom.AsyncClient(served.address, timeout=30) as client:
        yield served, client


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("loss", TARGETS)
async def test_every_gradient_is_autograds(cells, cell, loss):
    served, client = cells
    spec, reference = CELLS[cell], Reference(served.networks[cell])
    start, back = state_of(spec, 3, 1), state_of(spec, 3, 2)
    g = await client.gradients(
        cell, XS, TARGETS[loss], loss=loss, wrt=WRT, initial_state=start, final_state_gradient=back
    )

    initial = [torch.from_numpy(part).clone().requires_grad_() for part in parts_of(start)]
    total, inputs, outputs, hiddens, losses = torch.zeros(()), [], [], [], []
    for n, (x, target) in enumerate(zip(XS, TARGETS[loss], strict=True)):
        inputs.append(torch.from_numpy(x).clone().requires_grad_())
        hidden, final = reference.hidden(inputs[-1], [part[:, n : n + 1].contiguous() for part in initial])
        hiddens.append(hidden)
        hidden.retain_grad()
        outputs.append(reference.logits(hidden))
        outputs[-1].retain_grad()
        losses.append(loss_of(outputs[-1], target, loss))
        came_back = zip(final, parts_of(back), strict=True)
        total = total + losses[-1] + sum((f * torch.from_numpy(b[:, n : n + 1])).sum() for f, b in came_back)
    total.backward()
    np.testing.assert_allclose(g.losses, [one.item() for one in losses], **EXACT)
    assert g.loss == pytest.approx(g.losses.sum())
    assert set(g.parameters) == set(reference.parameters)
    for name, parameter in reference.parameters.items():
        np.testing.assert_allclose(g.parameters[name], parameter.grad, err_msg=name, **EXACT)
    for name, ours, theirs in (("inputs", g.inputs, inputs), ("outputs", g.outputs, outputs)):
        for n in range(3):
            np.testing.assert_allclose(ours[n], theirs[n].grad, err_msg=name, **EXACT)
    for ours, theirs in zip(parts_of(g.initial_state), initial, strict=True):
        np.testing.assert_allclose(ours, theirs.grad, **EXACT)
    assert [h.shape for h in g.hidden] == [(steps, 7) for steps in LENGTHS]
    for n in range(2):  # autograd keeps what the loss sends to s_t; the last step has no later one
        came = hiddens[n].grad[-1].numpy()
        np.testing.assert_allclose(g.hidden[n][-1], came + parts_of(back)[0][-1, n], **EXACT)
    assert (g.weights_version, g.norms) == (1, None)


async def test_float32_is_close_to_float64(cells):
    served, client = cells
    reference = Reference(served.networks["single"])
    g = await client.gradients("single", XS, LABELS, wrt=("parameters", "inputs"))
    reference.total(XS, LABELS).backward()
    for name, parameter in reference.parameters.items():
        assert g.parameters[name].dtype == np.float32
        np.testing.assert_allclose(g.parameters[name], parameter.grad, rtol=1e-3, atol=1e-5)
    assert [x.dtype for x in g.inputs] == [np.float32] * 3


@pytest.mark.parametrize(("loss", "divisor"), [("cross_entropy", 16), ("mse", 19), ("ctc", 3)])
async def test_a_mean_is_the_sum_divided_by_what_counts(cells, loss, divisor):
    _, client = cells
    whole, mean = [
        await client.gradients("gru", XS, TARGETS[loss], loss=loss, reduction=reduction)
        for reduction in ("sum", "mean")
    ]
    assert mean.loss * divisor == pytest.approx(whole.loss, rel=1e-12)
    for name, gradient in whole.parameters.items():
        np.testing.assert_allclose(mean.parameters[name] * divisor, gradient, **EXACT)


async def test_a_mean_over_no_steps_is_zero(cells):
    _, client = cells
    g = await client.gradients("gru", XS, [np.full(len(x), -100) for x in XS], reduction="mean")
    assert g.loss == 0
    assert not any(gradient.any() for gradient in g.parameters.values())


async def test_output_gradients_take_the_place_of_a_loss(cells):
    _, client = cells
    of_loss = await client.gradients("lstm", XS, LABELS, wrt=("parameters", "inputs", "outputs"))
    given = await client.gradients("lstm", XS, output_gradients=of_loss.outputs, wrt=("parameters", "inputs"))
    assert (given.loss, given.losses.tolist()) == (0, [0, 0, 0])
    for n in range(3):
        np.testing.assert_allclose(given.inputs[n], of_loss.inputs[n], **EXACT)
    for name, gradient in of_loss.parameters.items():
        np.testing.assert_allclose(given.parameters[name], gradient, **EXACT)


async def test_truncated_backpropagation_with_the_states_gradient_passed_back_is_the_whole(cells):
    _, client = cells
    x, labels, cut = noise(30, 5, 4), np.random.default_rng(4).integers(0, 4, 30), 11
    whole = await client.gradients("lstm", [x], [labels], wrt=("parameters", "inputs"))
    first = await client.infer("lstm", [x[:cut]])
    second = await client.gradients(
        "lstm",
        [x[cut:]],
        [labels[cut:]],
        initial_state=first.final_state,
        wrt=("parameters", "inputs", "initial_state"),
    )
    before = await client.gradients(
        "lstm", [x[:cut]], [labels[:cut]], final_state_gradient=second.initial_state, wrt=("parameters", "inputs")
    )
    np.testing.assert_allclose(before.final_state.hidden, first.final_state.hidden, **EXACT)
    np.testing.assert_allclose(np.concatenate([before.inputs[0], second.inputs[0]]), whole.inputs[0], **EXACT)
    assert before.loss + second.loss == pytest.approx(whole.loss)
    for name, gradient in whole.parameters.items():
        np.testing.assert_allclose(before.parameters[name] + second.parameters[name], gradient, **EXACT)


WIDE = ModelSpec(cell="elman", input_size=40, hidden_size=300, output_size=500)


async def test_factors_are_smaller_and_multiply_to_what_dense_has(serve):
    x, labels = noise(12, 40), np.arange(12)
    async with serve({"wide": WIDE}) as served, seqloom.AsyncClient(served.address) as client:
        small, dense, norms, half = [
            await client.gradients("wide", [x], [labels], **options)
            for options in (
                {},
                {"parameter_form": "dense"},
                {"parameter_form": "norms"},
                {"parameter_form": "dense", "parameter_dtype": "bfloat16"},
            )
        ]
    assert set(small.factors) == set(dense.parameters) == set(small.parameters)
    assert not dense.factors
    factors = [factor for pair in small.factors.values() for factor in pair if factor is not None]
    distinct = {factor.__array_interface__["data"][0]: factor.nbytes for factor in factors}
    assert sum(distinct.values()) < sum(gradient.nbytes for gradient in dense.parameters.values()) / 8
    left, right = small.factors["output.weight"]
    assert (left.shape, right.shape) == ((12, 500), (12, 300))
    assert small.factors["output.bias"][1] is None
    for name, gradient in dense.parameters.items():
        assert small.parameters[name].shape == gradient.shape
        np.testing.assert_allclose(small.parameters[name], gradient, rtol=1e-4, atol=1e-6)
        assert norms.norms[name] == pytest.approx(np.linalg.norm(gradient), rel=1e-4)
        np.testing.assert_allclose(half.parameters[name], gradient, rtol=2**-8, atol=1e-30)
        assert half.parameters[name].dtype == np.float32
    assert small.parameters["output.weight"] is small.parameters["output.weight"]  # multiplied once
    assert norms.parameters is None


async def test_nothing_comes_that_was_not_asked_for(cells):
    _, client = cells
    g = await client.gradients("gru", XS, LABELS, wrt=())
    assert (g.parameters, g.inputs, g.outputs, g.hidden, g.initial_state) == (None,) * 5
    assert g.final_state.hidden.shape == (2, 3, 7)


async def test_a_call_of_many_parts_both_ways_is_that_of_one(serve):
    spec = ModelSpec(cell="elman", input_size=40, hidden_size=16, output_size=50)
    xs = [noise(steps, 40, seed).astype("f4") for seed, steps in enumerate((9000, 4000, 7000))]
    targets = [noise(len(x), 50, len(x)).astype("f4") for x in xs]
    wrt = ("inputs", "outputs", "hidden")
    async with serve({"m": spec}) as served, seqloom.AsyncClient(served.address, timeout=60) as client:
        together = await client.gradients("m", xs, targets, loss="mse", wrt=wrt)
        alone = [await client.gradients("m", [x], [y], loss="mse", wrt=wrt) for x, y in zip(xs, targets, strict=True)]
    assert sum(x.nbytes for x in xs) > 3 << 20
    for name in wrt:
        for n in range(3):
            ours = getattr(together, name)[n]
            assert len(ours) == len(xs[n])
            np.testing.assert_allclose(ours, getattr(alone[n], name)[0], rtol=1e-3, atol=1e-4)


async def test_a_call_whose_states_take_more_than_a_part_goes_ahead_of_its_rows(serve):
    spec = ModelSpec(cell="lstm", input_size=3, hidden_size=1500, output_size=2)
    count = 100
    xs, labels = [noise(2, 3, n) for n in range(count)], [[0, 1]] * count
    async with serve({"m": spec}) as served, seqloom.AsyncClient(served.address, timeout=60) as client:
        start = state_of(spec, count)
        g = await client.gradients("m", xs, labels, initial_state=start, wrt=("inputs",))
        state = seqloom.State(start.hidden[:, 7:8], start.cell[:, 7:8])
        alone = await client.gradients("m", xs[7:8], labels[7:8], initial_state=state, wrt=("inputs",))
        np.testing.assert_allclose(g.inputs[7], alone.inputs[0], rtol=1e-3, atol=1e-6)
        with pytest.raises(seqloom.InvalidArgument, match="fewer sequences"):
            await client.gradients("m", xs * 4, labels * 4, initial_state=state_of(spec, 4 * count))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"targets": None}, "targets: expected either targets or output_gradients"),
        ({"output_gradients": [noise(4, 3)]}, "and not both"),
        ({"targets": [[0, 1, 2]]}, r"targets\[0\]: has 3 labels: expected 4, the number of steps of xs\[0\]"),
        ({"targets": [[0] * 4] * 2}, "targets: has 2 items: expected 1, one for each sequence of xs"),
        ({"targets": 3}, "targets: is a int"),
        ({"targets": [[0, 1, 3, 0]]}, r"targets\[0\]: is 3 at index 2: expected 0 to 2"),
        ({"targets": [[0, -1, 0, 0]]}, r"targets\[0\]: is -1 at index 1"),
        ({"targets": [[0.0] * 4]}, r"targets\[0\]: has dtype float64 and shape \[4\]: expected integers"),
        ({"loss": "hinge"}, "loss: is 'hinge'"),
        ({"reduction": "median"}, "reduction: is 'median'"),
        ({"loss": "mse"}, r"targets\[0\]: has shape \[4\]: expected \[4, 3\]"),
        ({"loss": "ctc", "targets": [[1, 1, 2, 2]]}, r"which need 6 steps: xs\[0\] has 4"),
        ({"loss": "ctc", "targets": [[0]]}, "0 is the blank"),
        ({"targets": None, "output_gradients": [noise(4, 2)]}, r"output_gradients\[0\]: has shape \[4, 2\]"),
        (
            {"targets": None, "output_gradients": [noise(4, 3)], "reduction": "mean"},
            "reduction: is 'mean': expected 'sum' with output_gradients",
        ),
        ({"wrt": ("weights",)}, "wrt: has 'weights'"),
        ({"parameter_form": "sparse"}, "parameter_form: is 'sparse'"),
        ({"parameter_dtype": "float16"}, "parameter_dtype: is 'float16'"),
        ({"initial_state": seqloom.State(np.zeros((1, 2, 7)))}, r"initial_state.hidden: has shape \[1, 2, 7\]"),
        ({"final_state_gradient": np.zeros((1, 1, 7))}, "final_state_gradient: is a ndarray"),
        ({"xs": []}, "xs: is empty"),
        ({"xs": [np.full((4, 5), np.nan)]}, r"xs: is nan at \[0, 0\]"),
        ({"loss": "mse", "targets": [np.full((4, 3), np.inf)]}, r"targets: is inf at \[0, 0\]"),
        ({"xs": [np.full((4, 5), 1.0)], "targets": [[[0]] * 4]}, r"and shape \[4, 1\]"),
    ],
)
async def test_what_is_wrong_is_told_by_the_arguments_name(client, arguments, words):
    given = {"xs": [noise(4)], "targets": [[0, 1, 2, 0]], **arguments}
    with pytest.raises(seqloom.InvalidArgument, match=words):
        await client.gradients("small", given.pop("xs"), given.pop("targets"), **given)


async def test_a_loss_that_overflows_is_told(client):
    with pytest.raises(seqloom.InvalidArgument, match="loss of sequence 0") as caught:
        await client.gradients("small", [noise(4)], [np.full((4, 3), 3e38)], loss="mse")
    assert caught.value.reason == "OVERFLOW"


async def test_other_weights_than_those_demanded_are_refused_and_an_unknown_model_is_not_found(client):
    with pytest.raises(seqloom.VersionMismatch):
        await client.gradients("small", [noise(4)], [[0] * 4], weights_version=7)
    with pytest.raises(seqloom.NotFound):
        await client.gradients("other", [noise(4)], [[0] * 4])


async def test_it_is_repeated_when_the_connection_breaks_under_it(served):
    async with proxy_of(served.address) as proxy, seqloom.AsyncClient(proxy.address, timeout=30) as client:
        before = await client.gradients("small", [noise(4)], [[0] * 4])
        proxy.open.clear()
        call = asyncio.create_task(client.gradients("small", [noise(4)], iter([[0] * 4])))
        method = "seqloom.v1.TrainingService/ComputeGradients"
        await until(lambda: served.value("requests_total", method=method) == 2)
        proxy.cut()
        proxy.open.set()
        after = await call
        assert proxy.connections > 1
    assert after.loss == before.loss


async def test_the_blocking_client_gives_the_same_to_many_threads(served, client):
    expected = await client.gradients("small", [noise(4)], [[0] * 4], wrt=("inputs",))
    with seqloom.Client(served.address) as blocking:
        found = await in_threads(
            lambda _: blocking.gradients("small", [noise(4)], [[0] * 4], wrt=("inputs",)), range(8)
        )
    for g in found:
        np.testing.assert_allclose(g.inputs[0], expected.inputs[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", ["cross_entropy", "ctc"])
async def test_a_loss_that_one_output_cannot_have_is_refused_before_it_is_sent(serve, loss):
    async with serve({"one": ModelSpec("gru", 5, 4, 1)}) as served, seqloom.AsyncClient(served.address) as client:
        for labels in ([np.zeros(4, int)], [np.ones(2, int)], [np.zeros(0, int)]):
            with pytest.raises(seqloom.InvalidArgument, match=f"loss: is '{loss}': the model has one output") as caught:
                await client.gradients("one", [np.zeros((4, 5))], labels, loss=loss)
            assert caught.value.reason == "INVALID_FIELD"
        for outputs in ("probs", "log_probs", "labels", seqloom.TopK(1)):
            with pytest.raises(seqloom.InvalidArgument, match=r"outputs.*the model has one output"):
                await client.infer("one", [np.zeros((4, 5))], outputs)
            with pytest.raises(seqloom.InvalidArgument, match=r"outputs.*the model has one output"):
                await client.stream("one", outputs).__aenter__()
