"""Whole sequences through the SDK: every output kind, state in and out, and what is long or wide cut and joined."""

import asyncio

import numpy as np
import pytest
import seqloom
from helpers.expected_outputs import CLOSE, TOLERANCE, assert_state, hidden_of, log_softmax
from helpers.frames import noise
from helpers.real_server import SMALL
from helpers.threads import in_threads
from helpers.tolerances import assert_labels, near
from seqloom_server.nn.spec import ModelSpec

CELLS = {"elman": SMALL, "gru": ModelSpec("gru", 5, 7, 3, num_layers=2), "lstm": ModelSpec("lstm", 5, 7, 3, 2)}


def of_dtype(spec, dtype):
    return ModelSpec(spec.cell, spec.input_size, spec.hidden_size, spec.output_size, spec.num_layers, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
async def test_every_output_kind_of_every_cell_is_the_plain_twins(serve, dtype):
    xs = [noise(length, seed=length) for length in (40, 1, 17)]
    close = TOLERANCE[dtype]
    async with (
        serve({cell: of_dtype(spec, dtype) for cell, spec in CELLS.items()}) as served,
        seqloom.AsyncClient(served.address) as client,
    ):
        for cell in CELLS:
            inputs = [x.astype(dtype) for x in xs]
            kinds = ("logits", "probs", "log_probs", "labels", "hidden", seqloom.TopK(2))
            results = [await client.infer(cell, inputs, outputs=kind) for kind in kinds]
            logits, probs, log_probs, labels, hidden, top = (result.outputs for result in results)
            for i, x in enumerate(inputs):
                expected, final = served.expected(cell, x)
                np.testing.assert_allclose(logits[i], expected, **close)
                np.testing.assert_allclose(log_probs[i], log_softmax(expected), **close)
                np.testing.assert_allclose(probs[i], np.exp(log_softmax(expected)), **close)
                np.testing.assert_allclose(hidden[i], hidden_of(served, cell, x), **close)
                assert_labels(labels[i], expected, dtype)
                best = np.argsort(-expected, -1)[:, :2]
                assert_labels(top[i].labels, expected, dtype)
                np.testing.assert_allclose(top[i].scores, np.take_along_axis(log_softmax(expected), best, 1), **close)
                assert len(top[i]) == len(x)
                assert logits[i].dtype == probs[i].dtype == hidden[i].dtype == top[i].scores.dtype == dtype
                assert labels[i].dtype == top[i].labels.dtype == np.int32
                for result in results:
                    own = [part[:, i : i + 1] for part in (result.final_state.hidden, result.final_state.cell) if
                           part is not None]  # fmt: skip
                    assert_state(seqloom.State(*own), final, **close)


async def test_a_result_says_by_which_weights_and_in_what_time(client):
    result = await client.infer("small", [noise(4)])
    assert result.weights_version == 1
    assert result.timing.compute_seconds > 0
    assert result.timing.queue_seconds >= 0


@pytest.mark.parametrize("cell", CELLS)
async def test_a_sequence_cut_in_two_calls_is_the_whole_one(serve, cell):
    xs = [noise(30, seed=1), noise(12, seed=2)]
    async with (
        serve({"m": of_dtype(CELLS[cell], "float64")}) as served,
        seqloom.AsyncClient(served.address) as client,
    ):
        whole = await client.infer("m", xs)
        first = await client.infer("m", [x[:7] for x in xs])
        second = await client.infer("m", [x[7:] for x in xs], initial_state=first.final_state)
        for i in range(2):
            joined = np.concatenate([first.outputs[i], second.outputs[i]])
            np.testing.assert_allclose(joined, whole.outputs[i], rtol=1e-10, atol=1e-10)
        assert_state(
            second.final_state,
            tuple(part for part in (whole.final_state.hidden, whole.final_state.cell) if part is not None),
            rtol=1e-10,
            atol=1e-10,
        )
        state = (noise(2, 7)[:, None],) * (2 if cell == "lstm" else 1)
        if cell != "elman":
            result = await client.infer("m", xs[:1], initial_state=seqloom.State(*state))
            np.testing.assert_allclose(result.outputs[0], served.expected("m", xs[0], state)[0], rtol=1e-10)


async def test_a_demanded_version_is_the_one_served_or_refused(served, client, tmp_path):
    assert (await client.infer("small", [noise(4)], weights_version=1)).weights_version == 1
    with pytest.raises(seqloom.VersionMismatch, match="2") as caught:
        await client.infer("small", [noise(4)], weights_version=2)
    assert caught.value.reason == "VERSION_MISMATCH"
    with pytest.raises(seqloom.VersionMismatch):
        await client.infer("small", [noise(4)], weights_version=2**70)
    await client.export_model("small", tmp_path)
    await client.import_model("small", tmp_path)
    assert (await client.infer("small", [noise(4)], weights_version=2)).weights_version == 2
    with pytest.raises(seqloom.VersionMismatch, match="1"):
        await client.infer("small", [noise(4)], weights_version=1)


async def test_a_call_is_of_one_version_while_the_weights_are_replaced(serve, tmp_path):
    wide = ModelSpec("elman", 8192, 4, 3, precision="full")  # so many inputs add up what others round
    # more than a message, so that its sequences are opened one after the other
    xs = [noise(5, 8192, seed=i).astype("f4") for i in range(10)]
    async with serve({"m": (wide, 0), "other": (wide, 1)}) as served, seqloom.AsyncClient(served.address) as client:
        expected = [[served.expected(name, x)[0] for x in xs] for name in ("other", "m")]
        for name in ("m", "other"):
            await client.export_model(name, tmp_path / name)
        done = asyncio.Event()

        async def replace():
            for version in range(2, 12):
                await client.import_model("m", tmp_path / ("m" if version % 2 else "other"))
            done.set()

        async def call():
            met = set()
            while not done.is_set():
                result = await client.infer("m", xs)
                met.add(result.weights_version)
                for got, wanted in zip(result.outputs, expected[result.weights_version % 2], strict=True):
                    np.testing.assert_allclose(got, wanted, **near(rtol=1e-3, atol=1e-3))
            return met

        (*met, _) = await asyncio.gather(call(), call(), replace())
        assert len(set.union(*met)) > 1


@pytest.mark.parametrize(
    "given",
    [
        np.arange(20).reshape(4, 5),
        np.arange(20, dtype="u1").reshape(4, 5).tolist(),
        np.arange(20.0).reshape(4, 5).tolist(),
        np.arange(20, dtype="f8").reshape(4, 5),
        np.arange(20, dtype=">f4").reshape(4, 5),
        np.arange(20, dtype="f4").reshape(5, 4).T.copy(order="F") * 0 + np.arange(20).reshape(4, 5),
        np.arange(40, dtype="f2").reshape(4, 10)[:, ::2] / 2,
    ],
)
async def test_numbers_of_any_type_and_layout_are_taken_as_the_models(served, client, given):
    expected = served.expected("small", np.asarray(given, "f8"))[0]
    for xs in ([given], (given,), iter([given])):
        np.testing.assert_allclose((await client.infer("small", xs)).outputs[0], expected, **CLOSE)


async def test_sequences_longer_than_the_window_are_cut_and_joined(serve):
    async with serve(window_steps=64) as served, seqloom.AsyncClient(served.address) as client:
        xs = [noise(length, seed=length) for length in (1000, 63, 64, 65, 1, 300)]
        for kind in ("logits", "labels", seqloom.TopK(1)):
            result = await client.infer("small", xs, outputs=kind)
            for x, got in zip(xs, result.outputs, strict=True):
                expected = served.expected("small", x)[0]
                if kind == "logits":
                    np.testing.assert_allclose(got, expected, **CLOSE)
                else:
                    labels = got if kind == "labels" else got.labels[:, 0]
                    assert_labels(labels, expected)
        assert served.value("steps_total", op="stream") == 0


async def test_replies_of_many_megabytes_come_whole(serve):
    wide = ModelSpec("elman", 5, 4, 60_000)
    async with serve({"wide": wide}) as served, seqloom.AsyncClient(served.address) as client:
        xs = [noise(70, seed=1), noise(3, seed=2)]
        result = await client.infer("wide", xs)
        assert result.outputs[0].nbytes > 16 << 20
        for x, got in zip(xs, result.outputs, strict=True):
            np.testing.assert_allclose(got, served.expected("wide", x)[0], **CLOSE)


async def test_requests_of_many_megabytes_are_taken_whole(serve):
    async with (
        serve({"wide": ModelSpec("elman", 16_384, 3, 2)}) as served,
        seqloom.AsyncClient(served.address) as client,
    ):
        xs = [noise(steps, 16_384, seed=steps) / 128 for steps in (300, 9)]  # whose sums stay of order one
        result = await client.infer("wide", [x.astype("f4") for x in xs])
        for x, got in zip(xs, result.outputs, strict=True):
            np.testing.assert_allclose(got, served.expected("wide", x)[0], **CLOSE)


@pytest.mark.parametrize("count", [1, 2, 700])
async def test_any_number_of_sequences_come_back_in_their_order(served, client, count):
    xs = [noise(1 + i * 7 % 23, seed=i) for i in range(count)]
    result = await client.infer("small", xs)
    assert result.final_state.hidden.shape == (1, count, 7)
    for i, x in enumerate(xs):
        expected, final = served.expected("small", x)
        np.testing.assert_allclose(result.outputs[i], expected, **CLOSE)
        np.testing.assert_allclose(result.final_state.hidden[:, i : i + 1], final[0], **CLOSE)


async def test_64_concurrent_calls_each_get_their_own(served, client):
    async def call(i):
        x = noise(1 + i * 5 % 90, seed=i)
        result = await client.infer("small", [x])
        np.testing.assert_allclose(result.outputs[0], served.expected("small", x)[0], **CLOSE)

    await asyncio.gather(*(call(i) for i in range(64)))


async def test_64_threads_of_one_blocking_client_each_get_their_own(served):
    expected = {i: served.expected("small", noise(1 + i * 5 % 90, seed=i))[0] for i in range(64)}
    with seqloom.Client(served.address) as client:

        def call(i):
            got = client.infer("small", [noise(1 + i * 5 % 90, seed=i)]).outputs[0]
            np.testing.assert_allclose(got, expected[i], **CLOSE)

        await in_threads(call, range(64))


X = noise(3)
STATE = np.zeros((1, 1, 7))
WRONG = [
    ({"xs": []}, "xs"),
    ({"xs": 3}, "xs"),
    ({"xs": None}, "xs"),
    ({"xs": [X, X[:0]]}, r"xs\[1\]: has 0 steps"),
    ({"xs": [X, X[0]]}, r"xs\[1\]: has shape \[5\]: expected \[steps, 5\]"),
    ({"xs": [X, X[:, :4]]}, r"xs\[1\]: has shape \[3, 4\]: expected \[steps, 5\]"),
    ({"xs": [X[None]]}, r"xs\[0\]"),
    ({"xs": X}, r"xs\[0\]: has shape \[5\]"),
    ({"xs": [X, [[1, 2], [3]]]}, r"xs\[1\]"),
    ({"xs": ["speech"]}, r"xs\[0\]"),
    ({"xs": [None]}, r"xs\[0\]"),
    ({"xs": [X + 1j]}, r"xs\[0\]: has dtype complex128"),
    ({"xs": [X > 0]}, r"xs\[0\]: has dtype bool"),
    ({"xs": [X, X * np.nan]}, r"xs\[1\]: is nan at \[0, 0\]"),
    ({"xs": [X, X + np.inf]}, r"xs\[1\]: is inf"),
    ({"xs": [X * 1e300]}, r"xs\[0\]: is -?inf"),
    ({"outputs": "speech"}, "outputs: is 'speech'"),
    ({"outputs": None}, "outputs"),
    ({"outputs": ["logits"]}, "outputs"),
    ({"outputs": seqloom.TopK(4)}, r"outputs\.top_k: is 4: expected 1 to 3"),
    ({"outputs": seqloom.TopK(2**40)}, r"outputs\.top_k"),
    ({"initial_state": STATE}, "initial_state: is a ndarray"),
    (
        {"initial_state": seqloom.State(STATE, STATE)},
        r"initial_state\.cell: is given: expected None for a model with elman cells",
    ),
    ({"initial_state": seqloom.State(STATE[0])}, r"initial_state\.hidden: has shape \[1, 7\]"),
    ({"initial_state": seqloom.State(np.zeros((1, 2, 7)))}, r"initial_state\.hidden: has shape"),
    ({"initial_state": seqloom.State("speech")}, r"initial_state\.hidden"),
    ({"initial_state": seqloom.State(STATE * np.nan)}, r"initial_state\.hidden: is nan"),
    ({"weights_version": -1}, "weights_version: is -1"),
    ({"weights_version": 0}, "weights_version: is 0"),
    ({"weights_version": "1"}, "weights_version: is '1'"),
    ({"weights_version": 1.5}, "weights_version: is 1.5"),
    ({"timeout": 0}, "timeout: is 0"),
    ({"timeout": -1}, "timeout: is -1"),
    ({"timeout": "1"}, "timeout: is '1'"),
    ({"timeout": float("nan")}, "timeout: is nan"),
    ({"model": 7}, "model: is 7"),
    ({"model": "\ud800"}, "model"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG, ids=[f"{words}-{i}" for i, (_, words) in enumerate(WRONG)])
async def test_what_is_wrong_is_refused_by_the_arguments_name(client, wrong, words):
    right = {"model": "small", "xs": [X]}
    with pytest.raises(seqloom.InvalidArgument, match=f"^{words}"):
        await client.infer(**{**right, **wrong})
    assert len((await client.infer(**right)).outputs[0]) == 3


async def test_an_lstm_needs_its_cell_state(serve):
    async with serve({"lstm": ModelSpec("lstm", 5, 7, 3)}) as served, seqloom.AsyncClient(served.address) as client:
        with pytest.raises(seqloom.InvalidArgument, match=r"^initial_state\.cell: is None: expected an array"):
            await client.infer("lstm", [X], initial_state=seqloom.State(STATE))


@pytest.mark.parametrize("k", [0, -1, 1.5, "2", True, None])
def test_top_k_is_a_count(k):
    with pytest.raises(seqloom.InvalidArgument, match=r"^k: is "):
        seqloom.TopK(k)


@pytest.mark.parametrize("most", [20, 100], ids=["in one entry", "in several"])
async def test_more_steps_than_the_server_ever_takes_are_refused_with_the_limit(serve, most):
    async with serve(max_steps_per_sequence=most) as served, seqloom.AsyncClient(served.address) as client:
        words = rf"^xs\[1\]: (makes|will make) {most + 1} steps: expected at most {most} in a sequence"
        with pytest.raises(seqloom.InvalidArgument, match=words) as caught:
            await client.infer("small", [noise(most), noise(most + 1)])
        assert caught.value.reason == "OVER_LIMIT"
        assert caught.value.request_id


async def test_an_unknown_model_is_not_found_until_there_is_one(client):
    for _ in range(2):
        with pytest.raises(seqloom.NotFound, match="other") as caught:
            await client.infer("other", [X])
        assert caught.value.reason == "MODEL_NOT_FOUND"
    await client.create_model("other", seqloom.ModelSpec("elman", 5, 7, 3))
    assert len((await client.infer("other", [X])).outputs) == 1


async def test_a_model_that_was_replaced_by_one_of_another_shape_is_served_at_once(serve, client):
    async with serve({}) as served, seqloom.AsyncClient(served.address) as client:
        await client.create_model("m", seqloom.ModelSpec("elman", 5, 7, 3))
        assert (await client.infer("m", [X])).outputs[0].shape == (3, 3)
        async with seqloom.AsyncClient(served.address) as other:
            await other.unload_model("m")
            for file in (served.models / "m").iterdir():
                file.unlink()
            (served.models / "m").rmdir()
            await other.create_model("m", seqloom.ModelSpec("elman", 4, 7, 2))
        assert (await client.infer("m", [X[:, :4]])).outputs[0].shape == (3, 2)
        async with client.stream("m") as stream:
            await stream.send(X[:, :4])
            assert (await stream.receive()).outputs.shape == (3, 2)
