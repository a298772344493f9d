"""Which models are served, under which version, how many versions live, and what the metrics say of it."""

import asyncio
import dataclasses
import gc
import shutil
import threading

import numpy as np
import pytest
from helpers.engine_helpers import alone, close_to, feed, make_frames, open_sequence, running_engine
from helpers.real_server import metric, until
from helpers.specs import make_spec
from seqloom_server.engine.core.sequence import Op
from seqloom_server.engine.models import registry
from seqloom_server.engine.models.registry import check_name
from seqloom_server.errors import Reason, ServerError
from seqloom_server.nn.files import model_folder
from seqloom_server.nn.forward.network import Network

SPEC = make_spec()


def series(engine):
    """Every series that is labelled with a model, by its name."""
    families = engine._metrics._metrics.registry.collect()
    return {sample.labels["model"] for family in families for sample in family.samples if "model" in sample.labels}


async def refusal(awaitable):
    with pytest.raises(ServerError) as raised:
        await awaitable
    return raised.value


async def test_every_model_folder_is_served_at_the_start(tmp_path):
    for number, cell in enumerate(("elman", "gru")):
        model_folder.save(tmp_path / f"m{number}", Network.create(make_spec(cell), number), weights_version=number + 3)
    (tmp_path / "Not A Model").mkdir()
    (tmp_path / "file").write_text("")
    async with running_engine(tmp_path) as engine:
        infos = engine.registry.models()
        assert [(info.name, info.weights_version, info.spec.cell) for info in infos] == [
            ("m0", 3, "elman"),
            ("m1", 4, "gru"),
        ]
        assert metric(engine, "weights_version", model="m1") == 4


async def test_a_folder_of_models_that_is_not_there_serves_nothing_yet(tmp_path):
    async with running_engine(tmp_path / "absent") as engine:
        assert engine.registry.models() == []
        await engine.registry.create("m0", SPEC, 0)
    async with running_engine(tmp_path / "absent") as engine:
        assert [info.name for info in engine.registry.models()] == ["m0"]


async def test_what_a_crash_left_half_written_is_cleared_up_at_the_start(tmp_path):
    model_folder.save(tmp_path / "m0", Network.create(SPEC, 0), weights_version=7)
    (tmp_path / "m0").rename(tmp_path / ".m0.being-replaced")
    (tmp_path / ".m0.being-written").mkdir()
    async with running_engine(tmp_path) as engine:
        assert engine.registry.get("m0").weights_version == 7
    assert [path.name for path in tmp_path.iterdir() if path.name not in (".lock", ".runs")] == ["m0"]


async def test_reading_a_folder_anew_serves_it_as_the_next_version(tmp_path):
    (frames,) = make_frames(SPEC, 5)
    async with running_engine(tmp_path, SPEC) as engine:
        old = engine.registry.current("m0")
        model_folder.save(tmp_path / "m0", Network.create(SPEC, 99))
        assert (await engine.registry.load("m0")).weights_version == 2
        assert model_folder.load(tmp_path / "m0")[1] == 2
        new = engine.registry.current("m0")
        sequence, sink = open_sequence(engine, Op.INFER)
        feed(engine, sequence, frames, end=True)
        await sink.wait()
        np.testing.assert_allclose(sink.values, alone(new, frames)[0], **close_to(SPEC))
        assert not np.allclose(alone(new, frames)[0], alone(old, frames)[0])
        assert metric(engine, "weights_version", model="m0") == 2
        model_folder.save(tmp_path / "m0", Network.create(SPEC, 99), weights_version=10)
        assert (await engine.registry.load("m0")).weights_version == 10


async def test_unloaded_and_loaded_again_a_model_keeps_its_version(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        await engine.registry.unload("m0")
        assert (await refusal(engine.registry.unload("m0"))).reason is Reason.MODEL_NOT_FOUND
        with pytest.raises(ServerError, match="no model 'm0'"):
            engine.registry.current("m0")
        assert (await engine.registry.load("m0")).weights_version == 1


async def test_other_weights_never_get_a_version_that_was_served_before(tmp_path):
    config, weights = model_folder.to_bytes(Network.create(SPEC, 5), 1)
    async with running_engine(tmp_path, SPEC) as engine:
        assert (await engine.registry.import_("m0", config, weights)).weights_version == 2
        await engine.registry.unload("m0")
        assert (await engine.registry.import_("m0", config, weights)).weights_version == 3
        await engine.registry.unload("m0")
        shutil.rmtree(tmp_path / "m0")
        assert (await engine.registry.create("m0", SPEC, 0)).weights_version == 4
        await engine.registry.unload("m0")
        model_folder.save(tmp_path / "m0", Network.create(SPEC, 99), weights_version=2)
        assert (await engine.registry.load("m0")).weights_version == 5


async def test_a_demanded_version_that_is_not_served_is_refused_with_both(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        assert engine.registry.current("m0", 1).version == 1
        with pytest.raises(ServerError, match=r"weights_version: is 7: .* version 1 is served") as raised:
            engine.registry.current("m0", 7)
        assert raised.value.reason is Reason.VERSION_MISMATCH


async def test_a_session_keeps_the_weights_it_was_opened_with(tmp_path):
    (frames,) = make_frames(SPEC, 20)
    async with running_engine(tmp_path, SPEC) as engine:
        old = engine.registry.current("m0")
        stream, sink = open_sequence(engine)
        feed(engine, stream, frames[:10])
        await sink.until(lambda sink: sink.steps == 10)
        await engine.registry.import_("m0", *model_folder.to_bytes(Network.create(SPEC, 5)))
        beside, beside_sink = open_sequence(engine)
        feed(engine, beside, frames, end=True)
        await beside_sink.wait()
        await engine.registry.unload("m0")
        feed(engine, stream, frames[10:], end=True)
        await sink.wait()
        np.testing.assert_allclose(sink.values, alone(old, frames)[0], **close_to(SPEC))
        np.testing.assert_allclose(beside_sink.values, alone(beside.weights, frames)[0], **close_to(SPEC))


async def test_versions_in_use_are_bounded_and_room_comes_when_their_sessions_end(tmp_path):
    files = model_folder.to_bytes(Network.create(SPEC, 5))
    async with running_engine(tmp_path, SPEC, max_live_versions=2, max_live_bytes=0) as engine:
        models = engine.registry
        for _ in range(5):
            await models.import_("m0", *files)  # nobody uses those before: they are gone
        assert len(models.alive()) == 1
        first, first_sink = open_sequence(engine)
        await models.import_("m0", *files)
        second, _ = open_sequence(engine)
        assert len(models.alive()) == 2
        for change in (models.import_("m0", *files), models.load("m0")):
            refused = await refusal(change)
            assert refused.reason is Reason.OVERLOADED
            assert refused.retry_after > 0
        assert models.current("m0") is second.weights, "nothing was done"
        feed(engine, first, end=True)
        await first_sink.wait()
        await models.load("m0")
        engine.cancel([second])
        assert len(models.alive()) == 1


async def test_versions_of_few_bytes_may_be_more_and_their_bytes_are_bounded(tmp_path):
    files = model_folder.to_bytes(Network.create(SPEC, 5))
    async with running_engine(tmp_path, SPEC) as engine:
        size = engine.registry.current("m0").nbytes
    async with running_engine(tmp_path, max_live_versions=2, max_live_bytes=6 * size) as engine:
        models, opened = engine.registry, [open_sequence(engine)]
        for _ in range(5):  # a publish waits for none of the streams that hold an earlier version
            await models.import_("m0", *files)
            opened.append(open_sequence(engine))
        assert len({sequence.weights for sequence, _ in opened}) == len(models.alive()) == 6
        assert (await refusal(models.import_("m0", *files))).reason is Reason.OVERLOADED
        feed(engine, opened[0][0], end=True)
        await opened[0][1].wait()
        await models.import_("m0", *files)


async def test_memory_in_the_metrics_is_that_of_what_is_alive(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        old = engine.registry.current("m0")
        stream, _ = open_sequence(engine)
        await engine.registry.import_("m0", *model_folder.to_bytes(Network.create(SPEC, 5)))
        both = [old, engine.registry.current("m0")]
        states = sum(weights.state_bytes for weights in both)
        assert metric(engine, "state_bytes") == states
        assert metric(engine, "device_memory_bytes") == states + sum(weights.network.nbytes for weights in both)
        engine.cancel([stream])
        assert metric(engine, "state_bytes") == both[1].state_bytes
        await engine.registry.unload("m0")
        assert metric(engine, "device_memory_bytes") == 0


async def test_a_model_that_is_gone_leaves_no_series_behind(tmp_path):
    (frames,) = make_frames(SPEC, 5)
    async with running_engine(tmp_path, SPEC, SPEC) as engine:
        stream, _ = open_sequence(engine)
        sequence, sink = open_sequence(engine, Op.INFER)
        feed(engine, sequence, frames, end=True)
        await sink.wait()
        await engine.registry.unload("m0")
        assert metric(engine, "weights_version", model="m0") == 0, "there is none"
        assert metric(engine, "active_streams", model="m0") == 1, "a session still uses it"
        engine.cancel([stream])
        assert series(engine) == {"m1"}
        await engine.registry.load("m0")
        assert series(engine) == {"m0", "m1"}
        labels = {"op": "stream", "model": "m0"}
        stream, sink = open_sequence(engine)
        feed(engine, stream, frames, end=True)
        await sink.wait()
        await until(lambda: metric(engine, "steps_total", **labels) == 5)


async def test_importing_another_specification_over_a_served_model_is_refused(tmp_path):
    other = dataclasses.replace(SPEC, hidden_size=6)
    async with running_engine(tmp_path, SPEC) as engine:
        refused = await refusal(engine.registry.import_("m0", *model_folder.to_bytes(Network.create(other, 5))))
        assert refused.reason is Reason.MODEL_EXISTS
        assert model_folder.load(tmp_path / "m0")[0].spec == SPEC
        await engine.registry.unload("m0")
        await engine.registry.import_("m0", *model_folder.to_bytes(Network.create(other, 5)))
        assert engine.registry.get("m0").spec == other


async def test_a_name_is_taken_once_also_by_calls_at_the_same_time(tmp_path):
    async with running_engine(tmp_path) as engine:
        results = await asyncio.gather(
            *(engine.registry.create("m0", SPEC, seed) for seed in range(3)), return_exceptions=True
        )
        refused = [result.reason for result in results if isinstance(result, ServerError)]
        assert refused == [Reason.MODEL_EXISTS] * 2
        await engine.registry.unload("m0")
        assert (await refusal(engine.registry.create("m0", SPEC, 0))).reason is Reason.MODEL_EXISTS
        assert (await refusal(engine.registry.load("m9"))).reason is Reason.MODEL_NOT_FOUND


async def test_what_is_exported_can_be_imported_elsewhere(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        files = await engine.registry.export("m0")
        await engine.registry.import_("copy", *files)
        (frames,) = make_frames(SPEC, 5)
        weights = [engine.registry.current(name) for name in ("m0", "copy")]
        np.testing.assert_array_equal(*(alone(each, frames)[0] for each in weights))
        assert (await refusal(engine.registry.import_("bad", files[0], b"none"))).reason is Reason.MODEL_BROKEN
        assert not (tmp_path / "bad").exists()


class Hold:
    """Stands before a function that a worker thread calls: it waits there, and goes on when it is told to."""

    def __init__(self, monkeypatch, module, name):
        self._function = getattr(module, name)
        self.arrived, self._go_on = threading.Event(), threading.Event()
        monkeypatch.setattr(module, name, self._wait)

    def _wait(self, *arguments):
        self.arrived.set()
        assert self._go_on.wait(60)
        return self._function(*arguments)

    async def until_arrived(self):
        assert await asyncio.to_thread(self.arrived.wait, 60)

    def go_on(self):
        self._go_on.set()


async def test_a_change_whose_caller_went_away_is_finished_and_served_and_nobody_writes_beside_it(
    tmp_path, monkeypatch
):
    hold = Hold(monkeypatch, model_folder, "save")
    async with running_engine(tmp_path) as engine:
        first = asyncio.create_task(engine.registry.create("m0", SPEC, 0))
        await hold.until_arrived()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(engine.registry.create("m0", SPEC, 1))
        await asyncio.sleep(0)
        assert not (tmp_path / "m0").exists()
        hold.go_on()
        assert (await refusal(second)).reason is Reason.MODEL_EXISTS
        assert engine.registry.get("m0").weights_version == 1
        assert (tmp_path / "m0").is_dir()


async def test_a_change_that_is_refused_late_has_not_replaced_the_folder(tmp_path, monkeypatch):
    async with running_engine(tmp_path, SPEC, max_live_versions=1, max_live_bytes=0) as engine:
        hold = Hold(monkeypatch, registry, "warm_up")
        importing = asyncio.create_task(engine.registry.import_("m0", *model_folder.to_bytes(Network.create(SPEC, 5))))
        await hold.until_arrived()
        open_sequence(engine)
        hold.go_on()
        assert (await refusal(importing)).reason is Reason.OVERLOADED
        assert engine.registry.get("m0").weights_version == 1
        assert model_folder.load(tmp_path / "m0")[1] == 1


async def test_a_model_that_has_had_the_last_version_gets_no_other_and_the_server_starts_again(tmp_path):
    files = model_folder.to_bytes(Network.create(SPEC, 5), model_folder.MAX_VERSION)
    beyond = model_folder.to_bytes(Network.create(SPEC, 5), model_folder.MAX_VERSION + 1)
    async with running_engine(tmp_path) as engine:
        assert (await refusal(engine.registry.import_("m1", *beyond))).reason is Reason.MODEL_BROKEN
        assert (await engine.registry.import_("m0", *files)).weights_version == model_folder.MAX_VERSION
        for change in (engine.registry.import_("m0", *files), engine.registry.load("m0")):
            refused = await refusal(change)
            assert refused.reason is Reason.OVER_LIMIT
            assert "the highest possible" in refused.message
    async with running_engine(tmp_path) as engine:
        assert engine.registry.get("m0").weights_version == model_folder.MAX_VERSION


async def test_a_model_above_the_bound_of_its_bytes_is_refused_whichever_way_it_comes(tmp_path):
    size = model_folder.weights_bytes(SPEC)
    larger = dataclasses.replace(SPEC, hidden_size=6)
    model_folder.save(tmp_path / "m1", Network.create(SPEC, 0))
    async with running_engine(tmp_path, SPEC, max_model_bytes=size) as engine:
        model_folder.save(tmp_path / "m2", Network.create(larger, 0))
        for change in (
            engine.registry.create("m3", larger, 0),
            engine.registry.import_("m3", *model_folder.to_bytes(Network.create(larger, 0))),
            engine.registry.load("m2"),
        ):
            refused = await refusal(change)
            assert refused.reason is Reason.OVER_LIMIT
            assert f"at most {size}" in refused.message
        assert not (tmp_path / "m3").exists()


@pytest.mark.parametrize("name", ["", "A", ".hidden", "-x", "a/b", "..", "a\n", "ä", "a" * 65, "x" * 10_000])
def test_what_is_no_name_is_refused_briefly(name):
    with pytest.raises(ServerError, match="expected 1 to 64") as raised:
        check_name(name)
    assert raised.value.reason is Reason.INVALID_FIELD
    assert len(raised.value.message) < 300


async def test_a_change_that_fails_after_its_caller_has_gone_is_not_logged_as_forgotten(tmp_path, caplog):
    async with running_engine(tmp_path) as engine:
        change = asyncio.create_task(engine.registry.load("absent"))
        await asyncio.sleep(0)  # it begins
        assert engine.registry._changing.locked()
        change.cancel()
        await asyncio.gather(change, return_exceptions=True)
        await until(lambda: not engine.registry._changing.locked())
        del change, engine.registry._change
        gc.collect()
        assert "never retrieved" not in caplog.text
