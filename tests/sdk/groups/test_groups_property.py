"""Through the whole service: whatever is asked of groups, in any company, each stream gets what it gets alone."""

import asyncio

import numpy as np
import pytest
import seqloom
from helpers.group_scripts import TOLERANCE, Checked, scripts, states_of
from helpers.plain_group import PlainGroup
from helpers.plain_twin import plain_outputs
from helpers.raw_groups import assert_free
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seqloom_server.nn.spec import ModelSpec

SPECS = [
    ModelSpec("elman", 4, 8, 3),
    ModelSpec("gru", 4, 8, 3, 2, dtype="float64", conv_channels=3, conv_width=3),
    ModelSpec("lstm", 4, 8, 3, 2, dtype="float64"),
]


async def of_group(client, served, spec, script, seed):
    n, begins, actions = script
    draw = np.random.default_rng(seed)
    initial = states_of(spec, n, draw) if begins else None
    state = None if initial is None else seqloom.State(**dict(zip(spec.state_shapes(), initial, strict=True)))
    async with client.stream_group("m", n, initial_state=state) as group:
        checked = Checked(group, PlainGroup(served.networks["m"], n, initial), spec, draw)
        for what, streams, k, turns in actions:
            for _ in range(turns):
                await asyncio.sleep(0)
            await checked.do(what, streams, k)
        await checked.end()


async def of_company(client, served, spec, steps, live):
    x = np.random.default_rng(steps).standard_normal((steps, spec.input_size))
    _, expected, _ = plain_outputs(served.networks["m"], x.astype(spec.dtype))
    if live:
        async with client.stream("m") as stream:
            got = np.concatenate([chunk.outputs async for chunk in stream.run([x[:3], x[3:]])])
    else:
        got = (await client.infer("m", [x])).outputs[0]
    np.testing.assert_allclose(got, expected, **TOLERANCE[spec.dtype])


@pytest.mark.parametrize("spec", SPECS, ids=[spec.cell for spec in SPECS])
def test_each_stream_gets_what_it_gets_alone(serve, spec):
    with asyncio.Runner() as runner:
        # slices narrower than some groups and shorter than some calls
        serving = serve({"m": spec}, max_batch_steps=20, window_steps=64, poison_slots=True)
        served = runner.run(serving.__aenter__())
        client = seqloom.AsyncClient(served.address, timeout=60)

        async def scenario(groups, company):
            await asyncio.gather(
                *(of_group(client, served, spec, script, seed) for seed, script in enumerate(groups)),
                *(of_company(client, served, spec, steps, live) for steps, live in company),
            )
            await assert_free(served)
            budget = client._connection.channel().shared._budget
            assert budget.free == budget.size

        @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(
            st.lists(scripts(), min_size=1, max_size=3),
            st.lists(st.tuples(st.integers(4, 60), st.booleans()), max_size=3),
        )
        def holds(groups, company):
            runner.run(scenario(groups, company))

        try:
            holds()
        finally:
            runner.run(client.close())
            runner.run(serving.__aexit__(None, None, None))
