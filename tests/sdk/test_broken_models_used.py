"""A broken model as the SDK's callers meet it: named with why in the list, an error of its kind in every use of it."""

import numpy as np
import pytest
import seqloom
from helpers import damage
from helpers.frames import noise
from helpers.real_server import SMALL, serving, write_models
from seqloom_server.nn.files import model_folder

X = noise(6)

USES = {
    "infer": lambda client, folder: client.infer("bad", [X]),
    "stream": lambda client, folder: client.stream("bad").__aenter__(),
    "gradients": lambda client, folder: client.gradients("bad", [X], [np.zeros(6, int)]),
    "create_run": lambda client, folder: client.create_run("bad", optimizer=seqloom.SGD(0.1)),
    "export_model": lambda client, folder: client.export_model("bad", folder / "exported"),
    "load_model": lambda client, folder: client.load_model("bad"),
}


@pytest.fixture
async def broken(tmp_path):
    """A server of "good" and of "bad", whose weights are cut short; and a client."""
    networks = write_models(tmp_path / "models", {"good": SMALL, "bad": SMALL})
    damage.cut(model_folder.WEIGHTS, -9)(tmp_path / "models" / "bad")
    async with (
        serving(tmp_path / "models", {}) as served,
        seqloom.AsyncClient(served.address, timeout=30) as client,
    ):
        served.networks.update(networks)
        yield served, client


async def test_a_broken_model_is_listed_with_why_and_nothing_else_is_known_of_it(broken):
    _, client = broken
    bad, good = await client.models()
    assert (bad.name, good.name, good.broken) == ("bad", "good", "")
    assert bad.broken.startswith("model.safetensors: ")
    assert (bad.weights_version, bad.parameter_count) == (0, 0)
    assert await client.model("bad") == bad
    with pytest.raises(seqloom.InvalidArgument) as unknown:
        _ = bad.spec
    assert (unknown.value.reason, bad.broken in unknown.value.message) == ("MODEL_BROKEN", True)
    assert repr(bad) == f"ModelInfo(name='bad', broken={bad.broken!r})"
    told = f"spec={good.spec!r}, weights_version=1, parameter_count={good.parameter_count}"
    assert repr(good) == f"ModelInfo(name='good', {told})"


@pytest.mark.parametrize("use", USES)
async def test_every_use_of_a_broken_model_says_that_it_is_broken_and_why(broken, tmp_path, use):
    served, client = broken
    why = (await client.model("bad")).broken
    for _ in range(2):
        with pytest.raises(seqloom.InvalidArgument) as refused:
            await USES[use](client, tmp_path)
        assert refused.value.reason == "MODEL_BROKEN"
        assert "'bad'" in refused.value.message or "bad: " in refused.value.message
        assert why in refused.value.message
    result = await client.infer("good", [X])
    np.testing.assert_allclose(result.outputs[0], served.expected("good", X)[0], rtol=1e-4, atol=1e-5)


async def test_a_broken_model_is_used_as_soon_as_it_is_whole(broken, tmp_path):
    served, client = broken
    with pytest.raises(seqloom.AlreadyExists, match="cannot be loaded"):
        await client.create_model("bad", seqloom.ModelSpec("gru", 5, 4, 3))
    with pytest.raises(seqloom.InvalidArgument):
        await client.infer("bad", [X])
    await client.export_model("good", tmp_path / "exported")
    await client.import_model("bad", tmp_path / "exported")
    assert [info.broken for info in await client.models()] == ["", ""]
    result = await client.infer("bad", [X])
    np.testing.assert_allclose(result.outputs[0], served.expected("good", X)[0], rtol=1e-4, atol=1e-5)


async def test_a_broken_model_that_is_unloaded_is_told_of_no_more(broken):
    _, client = broken
    await client.unload_model("bad")
    assert [info.name for info in await client.models()] == ["good"]
    with pytest.raises(seqloom.NotFound):
        await client.infer("bad", [X])
