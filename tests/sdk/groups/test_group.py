"""Stream groups through the SDK: stepped, pipelined, reset, read and set, and what is wrong with a call of theirs."""

import asyncio

import numpy as np
import pytest
import seqloom
from helpers.expected_outputs import CLOSE, assert_state
from helpers.plain_group import PlainGroup
from helpers.raw_groups import assert_free
from helpers.real_server import SMALL, until
from helpers.tolerances import assert_labels
from seqloom._groups import group_request
from seqloom_server.nn.spec import ModelSpec

LSTM = ModelSpec("lstm", 5, 7, 3, num_layers=2)
FRONT = ModelSpec("gru", 5, 7, 3, conv_channels=4, conv_width=3)


def frames(w, k, seed=0, width=5):
    return np.random.default_rng(seed).standard_normal((w, k, width)).astype("f4")


def states(spec, w, seed=0):
    draw = np.random.default_rng(seed)
    return tuple(draw.standard_normal((rows, w, width)).astype("f4") for rows, width in spec.state_shapes().values())


def state_of(parts, spec):
    return seqloom.State(**dict(zip(spec.state_shapes(), parts, strict=True)))


def close(got, expected):
    np.testing.assert_allclose(got, expected, **CLOSE)


def budget_of(client):
    budget = client._connection.channel().shared._budget
    return budget.size - budget.free


@pytest.fixture
def twin(served):
    return lambda n: PlainGroup(served.networks["small"], n)


@pytest.mark.parametrize("spec", [LSTM, FRONT], ids=["lstm", "front"])
async def test_all_there_is_of_a_group(serve, spec):
    async with serve({"m": spec}) as served, seqloom.AsyncClient(served.address, timeout=30) as client:
        initial, given = states(spec, 6, 1), states(spec, 2, 2)
        plain = PlainGroup(served.networks["m"], 6, initial)
        async with client.stream_group("m", 6, initial_state=state_of(initial, spec)) as group:
            assert (group.count, group.weights_version, group.snapshot) == (6, 1, None)
            chunk = await group.step(frames(6, 3))
            close(chunk.outputs, plain.run(range(6), frames(6, 3)))
            assert chunk.first_step.tolist() == [0] * 6
            chunk = await group.step(frames(2, 4, 1), streams=[5, 2])
            close(chunk.outputs, plain.run([5, 2], frames(2, 4, 1)))
            await group.reset([5, 0])
            plain.reset([5, 0])
            assert_state(await group.state([5, 1]), plain.get([5, 1]), **CLOSE)
            await group.reset([3])
            await group.set_state(state_of(given, spec), [3, 4])
            plain.set([3, 4], given)
            chunk = await group.step(frames(6, 1, 3))
            close(chunk.outputs, plain.run(range(6), frames(6, 1, 3)))
            assert chunk.first_step.tolist() == [3, 3, 7, 3, 3, 7]
            assert (await group.step(frames(6, 0))).outputs.shape == (6, 0, 3)
            assert_state(await group.state(), plain.states, **CLOSE)
            await group.set_state(state_of(initial, spec))
            await group.reset()
            plain.reset(range(6))
            assert_state(await group.finish(), plain.states, **CLOSE)
        await assert_free(served)
        assert budget_of(client) == 0


@pytest.mark.parametrize("kind", ["probs", "labels", "hidden", seqloom.TopK(2)])
async def test_a_group_gives_every_output_kind_as_infer_does(client, kind):
    x = frames(4, 6)
    whole = (await client.infer("small", list(x), outputs=kind)).outputs
    logits = (await client.infer("small", list(x))).outputs
    async with client.stream_group("small", 4, kind) as group:
        got = [(await group.step(x[:, start : start + 3])).outputs for start in (0, 3)]
        empty = (await group.step(x[:, :0])).outputs
    if isinstance(kind, seqloom.TopK):
        assert (empty.labels.shape, empty.scores.shape) == ((4, 0, 2), (4, 0, 2))
        for i in range(4):
            assert_labels(np.concatenate([part.labels[i] for part in got]), logits[i])
            np.testing.assert_allclose(np.concatenate([part.scores[i] for part in got]), whole[i].scores, **CLOSE)
    else:
        for i in range(4):
            mine = np.concatenate([part[i] for part in got])
            assert mine.dtype == whole[i].dtype
            if kind == "labels":
                assert_labels(mine, logits[i])
            else:
                np.testing.assert_allclose(mine, whole[i], **CLOSE)
        assert empty.shape == (4, 0, *whole[0].shape[1:])


async def at_length(items):
    for item in items:
        await asyncio.sleep(0)
        yield item


@pytest.mark.parametrize("iterable", [list, iter, at_length])
async def test_run_yields_one_chunk_for_each(served, client, twin, iterable):
    chunks = [frames(5, k, k) for k in (3, 0, 1, 40, 0, 2)]
    async with client.stream_group("small", 5) as group:
        plain = twin(5)
        for _ in range(2):
            got = [chunk async for chunk in group.run(iterable(chunks))]
            for chunk, x in zip(got, chunks, strict=True):
                assert chunk.first_step.tolist() == plain.steps.tolist()
                close(chunk.outputs, plain.run(range(5), x))
        assert_state(await group.finish(), plain.states, **CLOSE)
    assert budget_of(client) == 0


async def test_send_and_receive_pipeline_by_hand_also_past_the_end(client, twin):
    async with client.stream_group("small", 3) as group:
        plain = twin(3)
        with pytest.raises(seqloom.InvalidArgument, match="send frames first"):
            await group.receive()
        x = frames(3, 2)
        await group.send(x)
        expected = plain.run(range(3), x)
        x[:] = 0  # it was copied
        await group.send(frames(1, 4), streams=[1])
        plain.run([1], frames(1, 4))
        close((await group.step(frames(3, 1))).outputs, plain.run(range(3), frames(3, 1)))
        await group.finish()
        close((await group.receive()).outputs, expected)
        assert (await group.receive()).outputs.shape == (1, 4, 3)
        with pytest.raises(seqloom.InvalidArgument):
            await group.receive()
        for call in (group.step(x), group.send(x), group.reset(), group.state(), group.set_state(None)):
            with pytest.raises(seqloom.InvalidArgument):
                await call
    assert budget_of(client) == 0


async def test_sends_of_several_tasks_go_one_after_the_other(serve):
    async with serve(window_steps=64) as served, seqloom.AsyncClient(served.address, timeout=30) as client:
        plain = PlainGroup(served.networks["small"], 3)
        async with client.stream_group("small", 3) as group:
            sent = [asyncio.create_task(group.send(frames(3, 30, i))) for i in range(6)]
            for i in range(6):
                await sent[i]
                close((await group.receive()).outputs, plain.run(range(3), frames(3, 30, i)))
            assert all(task.done() for task in sent)
        assert budget_of(client) == 0


WRONG = {
    "frames of others": (lambda group: group.step(frames(2, 1)), r"^frames: has shape \[2, 1, 5\]: expected \[3, step"),
    "no frames": (lambda group: group.step(None), "^frames: has dtype object"),
    "a stream twice": (lambda group: group.step(frames(2, 1), [1, 1]), "^streams: has stream 1 twice"),
    "a stream too high": (lambda group: group.reset([3]), "^streams: has 3: expected 0 to 2"),
    "a stream below 0": (lambda group: group.state([-1]), "^streams: has -1"),
    "no streams": (lambda group: group.state([]), r"^streams: is \[\]"),
    "streams of floats": (lambda group: group.state([0.5]), r"^streams: is \[0\.5\]"),
    "a mask": (lambda group: group.state([True, False, True]), "^streams: is"),
    "another state": (lambda group: group.set_state(np.zeros((1, 3, 7))), "^state: is a ndarray"),
    "states of others": (lambda group: group.set_state(state_of(states(SMALL, 3), SMALL), [0]), r"^state\.hidden: has"),
    "NaN": (lambda group: group.step(frames(3, 2) * np.nan), "^frames: is nan at step 0 of stream 0, number 0"),
    "a state of NaN": (
        lambda group: group.set_state(seqloom.State(np.full((1, 2, 7), np.nan)), [1, 2]),
        r"^state\.hidden: is nan",
    ),
    "no time": (lambda group: group.step(frames(3, 1), timeout=0), "^timeout: is 0"),
}


async def test_what_is_wrong_raises_at_its_call_and_the_group_goes_on(served, client, twin):
    async with client.stream_group("small", 3) as group:
        plain = twin(3)
        for what, (wrong, words) in WRONG.items():
            await group.reset([1])  # happens later, if it was of a call that failed
            plain.reset([1])
            with pytest.raises(seqloom.InvalidArgument, match=words):
                await wrong(group)
            chunk = await group.step(frames(3, 2))
            np.testing.assert_allclose(chunk.outputs, plain.run(range(3), frames(3, 2)), **CLOSE, err_msg=what)
            assert chunk.first_step.tolist() == (plain.steps - 2).tolist()
        assert_state(await group.finish(), plain.states, **CLOSE)
    assert budget_of(client) == 0
    await assert_free(served)


async def test_a_failure_is_raised_by_the_calls_sent_behind_it_and_nothing_of_them_has_run(client, twin):
    async with client.stream_group("small", 3) as group, client.stream("small") as other:
        plain = twin(3)
        await group.send(frames(3, 2))
        await group.send(frames(3, 2) * np.nan)
        await group.reset([0])
        await group.send(frames(3, 2))
        with pytest.raises(seqloom.InvalidArgument, match="nan"):
            await group.state()
        close((await group.receive()).outputs, plain.run(range(3), frames(3, 2)))
        for _ in range(2):
            with pytest.raises(seqloom.InvalidArgument, match="nan"):
                await group.receive()
        plain.reset([0])  # it was of a call that failed, so it happens now
        close((await group.step(frames(3, 1))).outputs, plain.run(range(3), frames(3, 1)))
        await group.send(frames(3, 2) * np.nan)
        await group.reset([2])
        with pytest.raises(seqloom.InvalidArgument, match="nan"):
            await group.set_state(state_of(states(SMALL, 2), SMALL), [1, 2])
        plain.reset([2])
        with pytest.raises(seqloom.InvalidArgument, match="nan"):
            await group.receive()
        assert_state(await group.state(), plain.states, **CLOSE)
        await other.send(np.zeros((1, 5)))
        await other.receive()
    assert budget_of(client) == 0


async def test_an_end_behind_a_failure_raises_it_and_can_be_asked_for_again(served, client, twin):
    async with client.stream_group("small", 3) as group, client.stream("small") as other:
        plain = twin(3)
        await group.send(frames(3, 2) * np.nan)
        with pytest.raises(seqloom.InvalidArgument, match="nan"):
            await group.finish()
        with pytest.raises(seqloom.InvalidArgument, match="nan"):
            await group.receive()
        close((await group.step(frames(3, 2))).outputs, plain.run(range(3), frames(3, 2)))
        for _ in range(2):
            assert_state(await group.finish(), plain.states, **CLOSE)
        await other.send(np.zeros((1, 5)))  # the call that they share goes on
        await other.receive()
    await assert_free(served)
    assert budget_of(client) == 0


async def test_a_run_that_meets_a_failure_raises_it(client, twin):
    async with client.stream_group("small", 3) as group:
        run = group.run([frames(3, 1), frames(3, 1) * np.nan])
        assert (await anext(run)).outputs.shape == (3, 1, 3)
        with pytest.raises(seqloom.InvalidArgument, match="nan"):
            await anext(run)
        with pytest.raises(seqloom.InvalidArgument, match=r"^chunks: has shape \[2, 1, 5\]"):
            async for _ in group.run([frames(2, 1)]):
                pass
        assert (await group.step(frames(3, 1))).first_step.tolist() == [1, 1, 1]


async def test_snapshots_are_of_all_streams(client, twin):
    async with client.stream_group("small", 3, snapshot_interval=4) as group:
        plain = twin(3)
        for k in (3, 1, 2):
            await group.step(frames(3, k))
            plain.run(range(3), frames(3, k))
            if k == 1:
                expected = plain.get(range(3))
        await group.state()
        assert group.snapshot.steps.tolist() == [4, 4, 4]
        assert_state(group.snapshot.state, expected, **CLOSE)
    async with client.stream_group("small", 3, initial_state=group.snapshot.state) as again:
        plain = PlainGroup(plain.network, 3, expected)
        close((await again.step(frames(3, 2))).outputs, plain.run(range(3), frames(3, 2)))


@pytest.mark.parametrize(("n", "k", "most"), [(4, 50, 1000), (40, 2, 100), (40, 3, 45), (7, 9, 20), (1, 9, 20)])
async def test_calls_larger_than_a_message_are_cut_and_are_one(served, client, twin, monkeypatch, n, k, most):
    monkeypatch.setattr(group_request, "MESSAGE_BYTES", most)
    plain = twin(n)
    some = list(range(0, n, 2))[::-1]
    given = states(SMALL, n, 3)
    plain.set(range(n), given)
    async with client.stream_group("small", n, initial_state=state_of(given, SMALL)) as group:
        await group.reset([0])
        plain.reset([0])
        await group.send(frames(n, k))
        plain.run(range(n), frames(n, k))
        x = frames(len(some), k, 1)
        close((await group.step(x, some)).outputs, plain.run(some, x))
        await group.receive()
        await group.reset(some)
        new = states(SMALL, len(some), 4)
        await group.set_state(state_of(new, SMALL), some)
        plain.set(some, new)
        assert_state(await group.state(), plain.states, **CLOSE)
        wrong = states(SMALL, n, 5)
        wrong[0][0, n - 1, 3] = np.nan
        with pytest.raises(seqloom.InvalidArgument, match=r"^state\.hidden: is nan"):
            await group.set_state(state_of(wrong, SMALL))
        assert_state(await group.finish(), plain.states, **CLOSE)
    assert budget_of(client) == 0
    await assert_free(served)


async def test_states_that_a_model_in_int8_cannot_have_change_nothing(serve, monkeypatch):
    monkeypatch.setattr(group_request, "MESSAGE_BYTES", 200)
    spec = ModelSpec("elman", 8, 16, 3, precision="int8")
    async with serve({"m": spec}) as served, seqloom.AsyncClient(served.address, timeout=30) as client:
        right, wrong = (np.full((1, 9, 16), value, "f4") for value in (0.5, 0.5))
        wrong[0, 8, 3] = -1.25
        with pytest.raises(seqloom.InvalidArgument, match=r"^initial_state\.hidden: has -1\.25: expected -1 to 1"):
            await client.stream_group("m", 9, initial_state=seqloom.State(wrong)).__aenter__()
        async with client.stream_group("m", 9, initial_state=seqloom.State(right)) as group:
            before = (await group.step(frames(9, 4, width=8))).outputs
            alone = await client.infer("m", list(frames(9, 4, width=8)), initial_state=seqloom.State(right))
            np.testing.assert_allclose(before, np.stack(alone.outputs), rtol=1e-5, atol=1e-5)
            state = await group.state()
            with pytest.raises(seqloom.InvalidArgument, match=r"^state\.hidden: has -1\.25"):
                await group.set_state(seqloom.State(wrong))
            np.testing.assert_array_equal((await group.finish()).hidden, state.hidden)
        await assert_free(served)


async def test_more_calls_than_may_wait_are_held_back(serve):
    wide = ModelSpec("elman", 5, 7, 30_000)
    options = {"max_batch_steps": 8}
    async with serve({"wide": wide}, **options) as served, seqloom.AsyncClient(served.address, timeout=30) as client:
        async with client.stream_group("wide", 40, "logits") as group:
            assert group.window == 1
            calls = [group.state([i % 40]) for i in range(1200)] + [group.step(frames(40, 1)) for _ in range(3)]
            await asyncio.gather(*calls)
            await group.step(frames(40, 5))  # more than the window
            await group.send(frames(40, 3))
            await group.finish()
        await assert_free(served)
        assert budget_of(client) == 0


async def test_the_blocking_client_has_it_all(served, twin):
    def use():
        with (
            seqloom.Client(served.address, timeout=30) as client,
            client.stream_group("small", 3, snapshot_interval=2) as group,
        ):
            plain = twin(3)
            assert (group.count, group.weights_version, group.window, group.snapshot) == (3, 1, 4096, None)
            close(group.step(frames(3, 2)).outputs, plain.run(range(3), frames(3, 2)))
            assert group.state([1]).hidden.shape == (1, 1, 7)
            assert group.snapshot.steps.tolist() == [2, 2, 2]
            group.reset([1])
            group.set_state(seqloom.State(np.ones((1, 1, 7))), [2])
            plain.reset([1])
            plain.set([2], (np.ones((1, 1, 7)),))
            group.send(frames(3, 2))
            close(group.receive().outputs, plain.run(range(3), frames(3, 2)))
            for chunk in group.run([frames(3, 1), frames(3, 2)]):
                close(chunk.outputs, plain.run(range(3), frames(3, chunk.outputs.shape[1])))
            with pytest.raises(seqloom.InvalidArgument):
                group.step(frames(3, 1) * np.nan)
            assert_state(group.finish(), plain.states, **CLOSE)

    await asyncio.to_thread(use)
    await until(lambda: served.engine.open_sessions == 0)


@pytest.mark.parametrize(
    ("n", "more", "words"),
    [
        (0, {}, "^n: is 0"),
        (2.5, {}, "^n: is 2.5"),
        (2**40, {}, "^n: is"),
        (10_001, {}, "^n: is 10001: expected at most 10000"),
        (3, {"outputs": "speech"}, "^outputs: is 'speech'"),
        (3, {"outputs": seqloom.TopK(4)}, r"^outputs\.top_k: is 4"),
        (3, {"initial_state": seqloom.State(np.zeros((1, 2, 7)))}, r"^initial_state\.hidden: has shape \[1, 2, 7\]"),
        (3, {"initial_state": seqloom.State(np.full((1, 3, 7), np.inf))}, r"^initial_state\.hidden: is inf"),
        (3, {"snapshot_interval": -1}, "^snapshot_interval: is -1"),
        (3, {"rate": -1}, "^rate: is -1"),
        (3, {"timeout": 0}, "^timeout: is 0"),
    ],
)
async def test_what_no_group_can_be_opened_with_is_told_by_name(served, client, n, more, words):
    with pytest.raises(seqloom.InvalidArgument, match=words):
        async with client.stream_group("small", n, **more):
            pass
    await assert_free(served)
    assert budget_of(client) == 0
