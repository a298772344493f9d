"""Whole sequences that asked first: a real server answers them as it answers those that are sent at once."""

import dataclasses

import numpy as np
import pytest
import seqloom
from helpers.frames import noise
from helpers.tolerances import near
from seqloom._streaming.whole_session import WholeSession
from seqloom_server.nn.spec import ModelSpec

WIDTH = 40
MODELS = {
    "elman": ModelSpec("elman", WIDTH, 7, 3),
    "lstm": ModelSpec("lstm", WIDTH, 7, 3, 2),
    "both": ModelSpec("gru", WIDTH, 7, 3, bidirectional=True),
    "wide": ModelSpec("elman", 1100, 7, 3),  # one step is more than 4 KiB
}
KINDS = ["logits", "probs", "log_probs", "labels", "hidden", seqloom.TopK(2)]
CLOSE = near(rtol=1e-4, atol=1e-5)  # a slice of others' steps rounds otherwise


class Asker:
    """A client that asks, or does not, as it is told. opened: whether each session asked."""

    def __init__(self, client, monkeypatch):
        self.client, self.opened = client, []
        open_whole = WholeSession.open

        def recorded(session, *arguments, ask):
            self.opened.append(ask)
            open_whole(session, *arguments, ask=ask)

        monkeypatch.setattr(WholeSession, "open", recorded)

    async def both(self, *arguments, **options):
        """The results of a call that is sent at once, and of the same one that asks."""
        throttle = self.client._connection.channel().shared.throttle(arguments[0])
        assert not throttle.overloaded
        at_once = await self.client.infer(*arguments, **options)
        assert not any(self.opened)
        self.opened.clear()
        throttle.refused(seqloom.Overloaded("busy", retry_after=1e6), 60, 1)
        asked = await self.client.infer(*arguments, **options)
        assert all(self.opened)
        self.opened.clear()
        throttle._forget()
        return at_once, asked


@pytest.fixture
async def asker(serve, monkeypatch):
    async with serve(MODELS, window_steps=64) as served, seqloom.AsyncClient(served.address, timeout=60) as client:
        yield Asker(client, monkeypatch)


def arrays(result):
    """All arrays of a result, by name."""
    found = {}
    for i, outputs in enumerate(result.outputs):
        parts = (
            {"": outputs} if isinstance(outputs, np.ndarray) else {n: getattr(outputs, n) for n in ("labels", "scores")}
        )
        found |= {f"outputs[{i}].{name}": part for name, part in parts.items()}
    state = {field.name: getattr(result.final_state, field.name) for field in dataclasses.fields(result.final_state)}
    return found | {name: part for name, part in state.items() if part is not None}


def assert_same(pair):
    at_once, asked = map(arrays, pair)
    assert asked.keys() == at_once.keys()
    for name, expected in at_once.items():
        assert asked[name].dtype == expected.dtype
        if expected.dtype == np.int32:
            assert np.mean(asked[name] == expected) > 0.98  # but where two scores are as good as equal
        else:
            np.testing.assert_allclose(asked[name], expected, err_msg=name, **CLOSE)
    assert [result.weights_version for result in pair] == [1, 1]


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_every_kind_of_outputs_of_every_model_is_the_same(asker, kind):
    for model, spec in MODELS.items():
        steps = 8 if model == "wide" else 50
        assert_same(await asker.both(model, [noise(steps, spec.input_size)], outputs=kind))


async def test_several_sequences_come_back_in_their_order(asker):
    xs = [noise(steps, WIDTH, seed=steps) for steps in (1, 90, 3, 64, 65, 1, 200)]
    for model in ("elman", "both"):
        pair = await asker.both(model, xs)
        assert [len(outputs) for outputs in pair[1].outputs] == [len(x) for x in xs]
        assert_same(pair)


async def test_an_initial_state_is_taken(asker):
    state = seqloom.State(noise(4, 7).reshape(2, 2, 7), noise(4, 7, seed=1).reshape(2, 2, 7))
    xs = [noise(60, WIDTH), noise(20, WIDTH, seed=1)]
    pair = await asker.both("lstm", xs, initial_state=state)
    assert_same(pair)
    without = await asker.client.infer("lstm", xs)
    assert not np.allclose(without.outputs[0][0], pair[1].outputs[0][0], **CLOSE)


@pytest.mark.parametrize("model", ["elman", "both"])
async def test_a_sequence_longer_than_the_window_is_whole(asker, model):
    assert_same(await asker.both(model, [noise(1000, WIDTH)]))


async def test_a_sequence_longer_than_an_entry_is_whole(asker):
    assert_same(await asker.both("wide", [noise(150, 1100)]))


async def test_sequences_of_one_step_are_asked_for_as_others_are(asker):
    assert_same(await asker.both("wide", [noise(1, 1100)]))
    assert_same(await asker.both("wide", [noise(1, 1100, seed=i) for i in range(5)]))
