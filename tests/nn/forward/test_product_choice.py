"""Products by measured choice: each shape once, kept beside the models for the next start on the same processor."""

import json
import logging
import math

import pytest
import torch
from helpers.engine_helpers import running_engine
from helpers.specs import make_spec
from seqloom_server.nn.forward import product_choice
from seqloom_server.nn.forward.product_choice import ProductChoices, packed_to_own

LARGE, OTHER = torch.ones(1024, 512), torch.ones(512, 1024)

pytestmark = pytest.mark.skipif(not product_choice._can_pack(torch.float32), reason="nothing can be packed here")


class Shares:
    """Answers with given shares, and counts the questions."""

    def __init__(self, *shares):
        self.asked, self._shares = [], iter(shares)

    def __call__(self, weight):
        self.asked.append(tuple(weight.shape))
        return next(self._shares)


def test_a_shape_is_measured_once_and_the_clearly_faster_way_is_taken():
    shares = Shares(0.5, 0.97, 1.9)
    choices = ProductChoices(shares)
    assert [choices.packs(LARGE) for _ in range(3)] == [True] * 3
    assert not choices.packs(OTHER)  # not clearly: a copy must earn its place
    assert not choices.packs(LARGE.bfloat16() if product_choice._can_pack(torch.bfloat16) else torch.ones(2048, 512))
    assert len(shares.asked) == 3


def test_small_and_double_weights_are_not_measured():
    shares = Shares()
    assert not ProductChoices(shares).packs(torch.ones(8, 8))
    assert not ProductChoices(shares).packs(LARGE.double())
    assert shares.asked == []


def test_the_next_process_does_as_this_one_and_measures_nothing(tmp_path, caplog):
    first, path = ProductChoices(Shares(0.5, 1.2)), tmp_path / ".products.json"
    first.keep_in(path)
    with caplog.at_level(logging.INFO):
        assert first.packs(LARGE)
    assert "1024x512 float32" in caplog.text
    assert not first.packs(OTHER)
    second = ProductChoices(Shares())
    second.keep_in(path)
    assert second.packs(LARGE)
    assert not second.packs(OTHER)


def test_another_processor_or_count_of_threads_is_measured_anew(tmp_path, monkeypatch):
    first, path = ProductChoices(Shares(0.5)), tmp_path / ".products.json"
    first.keep_in(path)
    assert first.packs(LARGE)
    monkeypatch.setattr(product_choice, "_processor", lambda: "another one")
    shares = Shares(1.5)
    second = ProductChoices(shares)
    second.keep_in(path)
    assert not second.packs(LARGE)
    assert len(shares.asked) == 1
    assert sorted(json.loads(path.read_text()).values()) == [0.5, 1.5]  # those of the first one are still there


@pytest.mark.parametrize("text", ["", "[1", "[1]", '{"a": "fast"}', "[" * 100_000])
def test_a_broken_file_is_replaced(tmp_path, text, caplog):
    path = tmp_path / ".products.json"
    path.write_text(text)
    choices = ProductChoices(Shares(0.5))
    choices.keep_in(path)
    assert "cannot be read" in caplog.text
    assert choices.packs(LARGE)
    assert list(json.loads(path.read_text()).values()) == [0.5]


def test_where_nothing_can_be_written_it_measures_at_each_start(tmp_path, caplog):
    choices = ProductChoices(Shares(0.5))
    choices.keep_in(tmp_path / "no such folder" / ".products.json")
    assert choices.packs(LARGE)
    assert "measured again" in caplog.text


def test_the_measure_is_a_share_of_time():
    share = packed_to_own(LARGE)
    assert math.isfinite(share)
    assert share > 0


async def test_a_server_keeps_its_choices_beside_the_models(tmp_path, monkeypatch):
    monkeypatch.setattr(product_choice.choices, "_shares", {})
    monkeypatch.setattr(product_choice.choices, "_path", None)
    spec = make_spec(dtype="float32", sizes=(3, 800, 5))
    async with running_engine(tmp_path, spec) as engine:
        kept = json.loads((tmp_path / ".products.json").read_text())
        assert [key.split(",")[0] for key in kept] == ["800x800 float32"]
        assert [model.name for model in engine.registry.models()] == ["m0"]
