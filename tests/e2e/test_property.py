"""Through the whole service: alone, in any batch, in chunks of any sizes, in any order, a sequence gives the same."""

import asyncio

import numpy as np
import pytest
import seqloom
from helpers.tolerances import alike
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seqloom_server.nn.spec import ModelSpec

TOLERANCE = {"float32": alike(rtol=1e-5, atol=1e-5), "float64": {"rtol": 1e-10, "atol": 1e-10}}
CELLS = [("elman", 1), ("gru", 2), ("lstm", 2)]


@st.composite
def callers(draw):
    """(length, sizes of its chunks or None for a whole sequence, turns of the loop before it begins) of each."""
    lengths = draw(st.lists(st.integers(1, 300), min_size=1, max_size=8))
    found = []
    for length in lengths:
        cuts = draw(st.none() | st.lists(st.integers(0, length), max_size=12))
        ends = None if cuts is None else [*sorted(cuts), length]
        found.append((length, ends, draw(st.integers(0, 20))))
    return found


async def run(client, frames, ends, turns):
    """The logits and the final state of one caller."""
    for _ in range(turns):
        await asyncio.sleep(0)
    if ends is None:
        result = await client.infer("m", [frames])
        return result.outputs[0], result.final_state
    chunks = [frames[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    async with client.stream("m") as stream:
        got = [chunk.outputs async for chunk in stream.run(chunks)]
        assert [len(outputs) for outputs in got] == [len(chunk) for chunk in chunks]
        return np.concatenate(got), await stream.finish()


async def scenario(client, everyone, seed, close):
    generator = np.random.default_rng(seed)
    xs = [generator.standard_normal((length, 6)) for length, _, _ in everyone]
    alone = [await client.infer("m", [x]) for x in xs]
    batched = await client.infer("m", xs)
    mixed = await asyncio.gather(
        *(run(client, x, ends, turns) for x, (_, ends, turns) in zip(xs, everyone, strict=True))
    )
    for i, (outputs, state) in enumerate(mixed):
        expected, final = alone[i].outputs[0], alone[i].final_state
        assert len(expected) == len(xs[i])
        np.testing.assert_allclose(batched.outputs[i], expected, **close)
        np.testing.assert_allclose(outputs, expected, **close)
        for part in ("hidden",) if final.cell is None else ("hidden", "cell"):
            np.testing.assert_allclose(getattr(batched.final_state, part)[:, i : i + 1], getattr(final, part), **close)
            np.testing.assert_allclose(getattr(state, part), getattr(final, part), **close)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("cell", "layers"), CELLS)
def test_batch_mates_arrival_order_and_chunking_change_nothing(serve, cell, layers, dtype):
    spec = ModelSpec(cell, 6, 16, 5, layers, dtype=dtype)

    with asyncio.Runner() as runner:
        # slices far shorter than the sequences, so that they are cut by the server as well
        serving = serve({"m": spec}, max_batch_steps=256, window_steps=64)
        served = runner.run(serving.__aenter__())
        client = seqloom.AsyncClient(served.address, timeout=60)

        @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(callers(), st.integers(0, 2**32))
        def holds(everyone, seed):
            runner.run(scenario(client, everyone, seed, TOLERANCE[dtype]))

        try:
            holds()
        finally:
            runner.run(client.close())
            runner.run(serving.__aexit__(None, None, None))
