"""In whatever state the wire is, a call of either client gives its result or an error of the one tree, of its kind."""

import asyncio
import concurrent.futures
import inspect
import random

import numpy as np
import pytest
import seqloom
from helpers.breaking_proxy import proxy_of
from seqloom_server.nn.spec import ModelSpec

SPEC = ModelSpec(cell="elman", input_size=100, hidden_size=300, output_size=50)
XS = [np.random.default_rng(0).standard_normal((3000, 100))]
THREADS = concurrent.futures.ThreadPoolExecutor(16)  # for blocking calls: one for each of them, and more
LABELS = [np.zeros(3000, int)]

CALLS = {
    "infer": lambda client, folder, **t: client.infer("m", XS, **t),
    "gradients": lambda client, folder, **t: client.gradients("m", XS, LABELS, **t),
    "models": lambda client, folder, **t: client.models(**t),
    "create_run": lambda client, folder, **t: client.create_run("m", optimizer=seqloom.SGD(0.1), **t),
    "runs": lambda client, folder, **t: client.runs(**t),
    "export_model": lambda client, folder, **t: client.export_model("m", folder / "exported", **t),
    "import_model": lambda client, folder, **t: client.import_model("m", folder / "whole", **t),
    "load_model": lambda client, folder, **t: client.load_model("m", **t),
}


async def outcome(client, call):
    """ "ok", or the error's class; what is no SeqloomError is raised."""
    try:
        if isinstance(client, seqloom.Client):
            await asyncio.get_running_loop().run_in_executor(THREADS, call)
        else:
            result = call()
            assert inspect.isawaitable(result)
            await result
    except seqloom.SeqloomError as error:
        return type(error).__name__ if error.reason else f"{error!r} without a reason"
    return "ok"


@pytest.fixture(params=[seqloom.AsyncClient, seqloom.Client], ids=["async", "blocking"])
async def wire(request, serve, tmp_path):
    """(proxy, client through it, folder with a model in "whole")."""
    async with (
        serve({"m": SPEC}, max_runs=1000, max_live_versions=1000) as served,
        proxy_of(served.address) as proxy,
        seqloom.AsyncClient(served.address) as direct,
    ):
        await direct.export_model("m", tmp_path / "whole")
        client = request.param(proxy.address, timeout=20)
        assert await outcome(client, lambda: client.infer("m", [XS[0][:1]])) == "ok"
        yield proxy, client, tmp_path
        proxy.open.set()
        assert await outcome(client, client.close) == "ok"  # a blocking one off the loop, which has the server


@pytest.mark.parametrize("name", CALLS)
async def test_a_timeout_at_any_moment_is_deadline_exceeded_or_foreseen(wire, name):
    _, client, folder = wire
    foreseen = {"Overloaded"} if name in ("infer", "gradients") else set()  # refused, as it could not be in time
    draw, seen = random.Random(name), set()
    for _ in range(25):
        timeout = 10 ** draw.uniform(-4, -1)
        seen.add(await outcome(client, lambda timeout=timeout: CALLS[name](client, folder, timeout=timeout)))
    assert seen <= {"ok", "DeadlineExceeded"} | foreseen
    assert await outcome(client, lambda: CALLS[name](client, folder)) == "ok"


@pytest.mark.parametrize("name", CALLS)
async def test_a_timeout_while_nothing_comes_back_is_deadline_exceeded(wire, name):
    proxy, client, folder = wire
    proxy.open.clear()
    for timeout in (0.05, 0.2):
        assert await outcome(client, lambda timeout=timeout: CALLS[name](client, folder, timeout=timeout)) == (
            "DeadlineExceeded"
        )
    proxy.open.set()
    assert await outcome(client, lambda: CALLS[name](client, folder)) == "ok"


@pytest.mark.parametrize("name", CALLS)
async def test_a_connection_that_breaks_at_any_byte_is_unavailable_or_mended(wire, name):
    proxy, client, folder = wire
    draw, seen = random.Random(name), set()
    for _ in range(12):
        proxy.cut_after = int(10 ** draw.uniform(0, 6))
        seen.add(await outcome(client, lambda: CALLS[name](client, folder)))
    proxy.cut_after = None
    assert seen <= {"ok", "Unavailable"}
    async with asyncio.timeout(30):  # what changes something is not repeated by itself while it connects again
        while await outcome(client, lambda: CALLS[name](client, folder)) == "Unavailable":
            pass
    assert await outcome(client, lambda: CALLS[name](client, folder)) == "ok"


async def test_a_client_that_is_closed_while_calls_are_under_way_is_cancelled(wire):
    proxy, client, folder = wire
    proxy.open.clear()
    calls = [asyncio.ensure_future(outcome(client, lambda name=name: CALLS[name](client, folder))) for name in CALLS]
    await asyncio.sleep(0.2)  # until they are under way: nothing comes back that could be waited for
    assert await outcome(client, client.close) == "ok"
    assert set(await asyncio.gather(*calls)) == {"Cancelled"}
