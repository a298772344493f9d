"""Models with a convolution in front, and bidirectional ones, through the SDK: what they give, and what they refuse."""

import asyncio

import numpy as np
import pytest
import seqloom
from helpers.expected_outputs import TOLERANCE, assert_state
from helpers.frames import noise
from seqloom_server.nn.spec import ModelSpec

CLOSE = TOLERANCE["float64"]
CELLS = {"elman": ("elman", "tanh"), "relu": ("elman", "relu"), "gru": ("gru", "tanh"), "lstm": ("lstm", "tanh")}


def spec_of(cell, **more):
    name, activation = CELLS[cell]
    return ModelSpec(name, 5, 7, 3, 2, activation, "float64", **more)


CONVOLUTIONS = {cell: spec_of(cell, conv_channels=6, conv_width=4) for cell in CELLS}
BOTH = {cell: spec_of(cell, bidirectional=True) for cell in CELLS}
BOTH["conv"] = spec_of("lstm", bidirectional=True, conv_channels=6, conv_width=4)


async def test_a_convolution_in_front_gives_the_same_whole_in_two_calls_and_in_chunks_of_any_sizes(serve):
    xs = [noise(40, seed=1), noise(9, seed=2)]
    sizes = [3, 1, 0, 10, 2, 0, 17, 7]
    async with serve(CONVOLUTIONS, poison_slots=True) as served, seqloom.AsyncClient(served.address) as client:
        for cell in CONVOLUTIONS:
            whole = await client.infer(cell, xs)
            first = await client.infer(cell, [x[:2] for x in xs])  # fewer than the convolution looks back at
            second = await client.infer(cell, [x[2:] for x in xs], initial_state=first.final_state)
            for i, x in enumerate(xs):
                expected, final = served.expected(cell, x)
                np.testing.assert_allclose(whole.outputs[i], expected, **CLOSE)
                joined = np.concatenate([first.outputs[i], second.outputs[i]])
                np.testing.assert_allclose(joined, expected, **CLOSE)
                for state in (whole.final_state, second.final_state):
                    parts = (state.hidden, state.cell, state.inputs)
                    own = seqloom.State(*(None if part is None else part[:, i : i + 1] for part in parts))
                    assert_state(own, final, **CLOSE)
            expected, final = served.expected(cell, xs[0])
            ends = np.cumsum(sizes)
            chunks = [xs[0][end - size : end] for size, end in zip(sizes, ends, strict=True)]
            async with client.stream(cell, snapshot_interval=8) as stream:
                got = [chunk.outputs async for chunk in stream.run(chunks)]
                assert_state(await stream.finish(), final, **CLOSE)
                snapshot = stream.snapshot
            np.testing.assert_allclose(np.concatenate(got), expected, **CLOSE)
            assert snapshot.steps == 40
            assert_state(snapshot.state, final, **CLOSE)


async def test_a_reset_forgets_the_inputs_too(serve):
    x = noise(12)
    async with (
        serve({"m": CONVOLUTIONS["gru"]}) as served,
        seqloom.AsyncClient(served.address) as client,
        client.stream("m") as stream,
    ):
        await stream.send(noise(9, seed=1))
        await stream.receive()
        await stream.reset()
        await stream.send(x)
        np.testing.assert_allclose((await stream.receive()).outputs, served.expected("m", x)[0], **CLOSE)


async def test_bidirectional_models_give_what_the_plain_twin_gives_also_beyond_one_message(serve):
    xs = [noise(length, seed=length) for length in (40, 1, 9, 6000)]
    async with (
        serve(BOTH, max_stream_message_bytes=1 << 16, poison_slots=True) as served,
        seqloom.AsyncClient(served.address) as client,
    ):
        for model in BOTH:
            some = xs if model == "gru" else xs[:3]
            result, hidden = await asyncio.gather(client.infer(model, some), client.infer(model, some, "hidden"))
            for i, x in enumerate(some):
                expected, final = served.expected(model, x)
                np.testing.assert_allclose(result.outputs[i], expected, **CLOSE)
                assert hidden.outputs[i].shape == (len(x), 14)
                parts = (result.final_state.hidden, result.final_state.cell, result.final_state.inputs)
                own = seqloom.State(*(None if part is None else part[:, i : i + 1] for part in parts))
                assert_state(own, final, **CLOSE)


async def test_a_bidirectional_sequence_beyond_a_batch_is_refused_with_the_limit(serve):
    async with (
        serve({"m": BOTH["gru"]}, max_batch_steps=500) as served,
        seqloom.AsyncClient(served.address, timeout=30) as client,
    ):
        assert len((await client.infer("m", [noise(500)])).outputs[0]) == 500
        for length in (501, 5000):
            with pytest.raises(seqloom.InvalidArgument, match="500") as caught:
                await client.infer("m", [noise(length)])
            assert caught.value.reason == "OVER_LIMIT"


async def test_what_needs_a_stream_is_refused_of_a_bidirectional_model(serve):
    async with serve({"m": BOTH["gru"]}) as served, seqloom.AsyncClient(served.address) as client:
        with pytest.raises(seqloom.InvalidArgument, match="runs only whole sequences") as caught:
            async with client.stream("m"):
                pass
        assert caught.value.reason == "INVALID_FIELD"
        assert served.engine.open_sessions == 0


async def test_states_of_other_parts_are_refused_by_name(serve):
    async with (
        serve({"conv": CONVOLUTIONS["gru"], "both": BOTH["gru"]}) as served,
        seqloom.AsyncClient(served.address) as client,
    ):
        hidden, inputs = np.zeros((2, 1, 7)), np.zeros((3, 1, 5))
        for model, state, message in (
            ("conv", seqloom.State(hidden), r"initial_state\.inputs: is None: expected an array for .* conv_width"),
            ("conv", seqloom.State(hidden, inputs=inputs[:2]), r"initial_state\.inputs: .*\[3, 1, 5\]"),
            ("both", seqloom.State(hidden), r"initial_state\.hidden: .*\[4, 1, 7\]"),
            ("both", seqloom.State(np.zeros((4, 1, 7)), inputs=inputs), r"initial_state\.inputs: .* expected None"),
        ):
            with pytest.raises(seqloom.InvalidArgument, match=message):
                await client.infer(model, [noise(3)], initial_state=state)


async def test_specifications_go_there_and_back(serve):
    async with serve({}) as served, seqloom.AsyncClient(served.address) as client:
        spec = seqloom.ModelSpec("lstm", 5, 7, 3, conv_channels=4, conv_width=3, bidirectional=True)
        await client.create_model("m", spec)
        assert (await client.model("m")).spec == spec
    for fields in ({"conv_channels": 4}, {"conv_width": 3}, {"conv_channels": -1}, {"bidirectional": 1}):
        with pytest.raises(seqloom.InvalidArgument, match=r"conv_|bidirectional"):
            seqloom.ModelSpec("gru", 5, 7, 3, **fields)
