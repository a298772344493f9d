"""A model folder that is broken is that model's matter: it is told by name and why, and the others are served."""

import asyncio
import pathlib

import numpy as np
import pytest
from helpers import damage
from helpers.engine_helpers import alone, close_to, feed, make_frames, open_sequence, running_engine
from helpers.specs import make_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.engine.core.sequence import Op
from seqloom_server.engine.engine import CannotStart
from seqloom_server.errors import Reason, ServerError
from seqloom_server.nn.files import model_folder
from seqloom_server.nn.forward.network import Network

SPEC = make_spec()
OTHER = make_spec("gru", sizes=(3, 4, 2))
DAMAGES = {
    **damage.of_folder(),
    **damage.of_files(model_folder.CONFIG, model_folder.WEIGHTS),
    "a size beyond all": damage.fields(model_folder.CONFIG, hidden_size=10**9),
    "another size": damage.fields(model_folder.CONFIG, hidden_size=6),
    "more than is taken": lambda folder: model_folder.save(folder, Network.create(make_spec(sizes=(3, 2000, 7)), 0)),
}


def write(root: pathlib.Path) -> None:
    for number in range(3):
        model_folder.save(root / f"m{number}", Network.create(SPEC, number))


async def refusal(awaitable):
    with pytest.raises(ServerError) as raised:
        await awaitable
    return raised.value


async def assert_serves(engine, model):
    (frames,) = make_frames(SPEC, 5)
    sequence, sink = open_sequence(engine, Op.INFER, model)
    feed(engine, sequence, frames, end=True)
    await sink.wait()
    np.testing.assert_allclose(sink.values, alone(engine.registry.current(model), frames)[0], **close_to(SPEC))


async def assert_one_is_broken(root):
    """m1 is broken, m0 and m2 are served."""
    async with running_engine(root, max_model_bytes=1 << 20) as engine:
        models = engine.registry
        assert [info.name for info in models.models()] == ["m0", "m2"]
        assert list(models.broken) == ["m1"]
        why = models.broken["m1"]
        assert why.isprintable()
        assert 0 < len(why) <= 500
        for model in ("m0", "m2"):
            await assert_serves(engine, model)
        with pytest.raises(ServerError) as refused:
            models.current("m1")
        assert refused.value.reason is Reason.MODEL_BROKEN
        assert why in refused.value.message
    return why


@pytest.mark.parametrize("what", DAMAGES)
async def test_a_broken_model_is_told_by_name_and_the_others_are_served(tmp_path, what):
    write(tmp_path)
    DAMAGES[what](tmp_path / "m1")
    await assert_one_is_broken(tmp_path)
    with pytest.raises(CannotStart) as ended:
        async with running_engine(tmp_path, max_model_bytes=1 << 20, strict_models=True):
            pass
    assert str(ended.value).startswith(f"models: {tmp_path}: m1: ")
    assert "\n" not in str(ended.value)


@settings(deadline=None, max_examples=25)
@given(share=st.floats(0, 1), name=st.sampled_from([model_folder.CONFIG, model_folder.WEIGHTS]))
def test_a_file_that_is_cut_anywhere_is_that_models_matter(tmp_path_factory, share, name):
    root = tmp_path_factory.mktemp("models")
    write(root)
    size = (root / "m1" / name).stat().st_size
    damage.cut(name, int(share * (size - 3)))(root / "m1")  # config.json without the end of its last line is whole
    asyncio.run(assert_one_is_broken(root))


async def test_files_beside_the_models_are_none(tmp_path):
    write(tmp_path)
    (tmp_path / "readme").write_text("of somebody")
    async with running_engine(tmp_path, strict_models=True) as engine:
        assert len(engine.registry.models()) == 3
        assert (await refusal(engine.registry.load("readme"))).reason is Reason.MODEL_NOT_FOUND
        assert engine.registry.broken == {}


async def test_a_link_to_a_folder_is_a_model_and_a_change_of_it_leaves_the_folder_it_leads_to(tmp_path):
    network = Network.create(SPEC, 5)
    model_folder.save(tmp_path / "elsewhere", network, 4)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m1").symlink_to(tmp_path / "elsewhere")
    for version in (4, 5):
        async with running_engine(tmp_path / "models") as engine:
            assert engine.registry.get("m1").weights_version == version
            if version == 4:
                await engine.registry.import_("m1", *model_folder.to_bytes(network))
    assert model_folder.load(tmp_path / "elsewhere")[1] == 4


async def test_a_broken_model_is_tried_again_by_load_and_is_served_once_it_is_whole(tmp_path):
    write(tmp_path)
    damage.cut(model_folder.WEIGHTS, 20)(tmp_path / "m1")
    async with running_engine(tmp_path) as engine:
        models = engine.registry
        before = models.broken["m1"]
        (tmp_path / "m1" / model_folder.CONFIG).write_text("{")
        assert (await refusal(models.load("m1"))).reason is Reason.MODEL_BROKEN
        assert models.broken["m1"] != before
        model_folder.save(tmp_path / "m1", Network.create(SPEC, 1), 3)
        assert (await models.load("m1")).weights_version == 3
        assert models.broken == {}
        await assert_serves(engine, "m1")


async def test_a_served_model_whose_folder_breaks_is_served_on_and_one_that_was_never_known_is_told(tmp_path):
    write(tmp_path)
    async with running_engine(tmp_path) as engine:
        models = engine.registry
        damage.cut(model_folder.WEIGHTS, 20)(tmp_path / "m1")
        assert (await refusal(models.load("m1"))).reason is Reason.MODEL_BROKEN
        assert models.broken == {}
        await assert_serves(engine, "m1")
        model_folder.save(tmp_path / "m3", Network.create(SPEC, 1))
        damage.cut(model_folder.WEIGHTS, 20)(tmp_path / "m3")
        assert (await refusal(models.load("m3"))).reason is Reason.MODEL_BROKEN
        assert list(models.broken) == ["m3"]
        damage.instead(lambda path: None)(tmp_path / "m3")
        assert (await refusal(models.load("m3"))).reason is Reason.MODEL_NOT_FOUND
        assert models.broken == {}


@pytest.mark.parametrize("what", ["a pipe", "a link to nowhere", f"{model_folder.WEIGHTS} is cut short"])
async def test_an_import_replaces_a_broken_model_and_a_create_does_not(tmp_path, what):
    write(tmp_path)
    DAMAGES[what](tmp_path / "m1")
    async with running_engine(tmp_path) as engine:
        models = engine.registry
        refused = await refusal(models.create("m1", SPEC, 0))
        assert refused.reason is Reason.MODEL_EXISTS
        assert f"cannot be loaded: {models.broken['m1']}" in refused.message
        await models.import_("m1", *model_folder.to_bytes(Network.create(OTHER, 5)))
        assert models.broken == {}
        assert models.get("m1").spec == OTHER
    async with running_engine(tmp_path, strict_models=True) as engine:
        assert engine.registry.get("m1").spec == OTHER
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == ["m0", "m1", "m2"]


async def test_a_broken_model_is_forgotten_by_unload_and_its_name_is_free_once_the_folder_is_gone(tmp_path):
    write(tmp_path)
    for model in ("m1", "m2"):
        damage.cut(model_folder.WEIGHTS, 20)(tmp_path / model)
    async with running_engine(tmp_path) as engine:
        models = engine.registry
        await models.unload("m1")
        assert list(models.broken) == ["m2"]
        with pytest.raises(ServerError) as refused:
            models.current("m1")
        assert refused.value.reason is Reason.MODEL_NOT_FOUND
        assert (tmp_path / "m1").is_dir()
        damage.instead(lambda path: None)(tmp_path / "m2")
        await models.create("m2", SPEC, 0)
        assert models.broken == {}
        await assert_serves(engine, "m2")
