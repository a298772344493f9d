"""Stream groups over a real channel: every field of the protocol, held against n streams that run one by one."""

import numpy as np
import pytest
from helpers.plain_group import PlainGroup
from helpers.raw_calls import assert_serves, entry
from helpers.raw_groups import Groups, assert_free, call, opening, parts_of, state_message
from helpers.real_server import SMALL, open_channel, until
from helpers.tolerances import near
from seqloom import tensors
from seqloom.v1 import inference_service_pb2 as pb
from seqloom.v1 import tensor_pb2
from seqloom_server.nn.spec import ModelSpec

CLOSE = near(rtol=1e-4, atol=1e-5)
LSTM = ModelSpec("lstm", 5, 7, 3, num_layers=2)


def frames(w, k, seed=0, width=5):
    return np.random.default_rng(seed).standard_normal((w, k, width)).astype("f4")


def states(spec, w, seed=0):
    draw = np.random.default_rng(seed)
    return tuple(draw.standard_normal((rows, w, width)).astype("f4") for rows, width in spec.state_shapes().values())


def assert_states(got, expected):
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)


@pytest.fixture
def plain(served):
    return lambda n, states=None: PlainGroup(served.networks["small"], n, states)


async def test_calls_of_all_streams_and_of_some_give_each_what_it_gets_alone(served, channel, plain):
    groups, twin = Groups(channel), plain(4)
    opened = await groups.open(9, 4)
    assert (opened.weights_version, opened.window_steps) == (1, 4096)
    steps = np.zeros(4, int)
    for seed, (streams, k) in enumerate([(None, 3), ([2, 0], 5), ([3], 1), (None, 0), ([1, 2], 0), (None, 2)]):
        which = list(range(4)) if streams is None else streams
        x = frames(len(which), k, seed)
        await groups.send(call(9, x, streams=streams))
        got, first, _ = await groups.outputs(9, len(which), k)
        np.testing.assert_allclose(got, twin.run(which, x), **CLOSE)
        np.testing.assert_array_equal(first, steps[which])
        steps[which] += k
    await groups.send(call(9, end=True))
    final, replies = await groups.states(9, 4, "ended")
    assert_states(final, twin.states)
    assert replies[0].ended.timing.compute_seconds > 0
    assert await groups.rest() == []
    await assert_free(served)


async def test_one_first_step_is_said_where_it_is_that_of_all(served, channel):
    groups = Groups(channel)
    await groups.open(1, 3)
    await groups.send(call(1, frames(3, 2)), call(1, frames(2, 2), streams=[0, 2]), call(1, frames(3, 1)))
    replies = [await groups.of(1) for _ in range(3)]
    assert [reply.outputs.first_step for reply in replies] == [0, 2, 0]
    assert [reply.outputs.HasField("first_steps") for reply in replies] == [False, False, True]
    assert tensors.decode(replies[2].outputs.first_steps).tolist() == [4, 2, 4]


KINDS = [
    (tensor_pb2.OUTPUT_KIND_PROBS, {"values": (3,)}),
    (tensor_pb2.OUTPUT_KIND_LABELS, {"labels": ()}),
    (tensor_pb2.OUTPUT_KIND_HIDDEN, {"values": (7,)}),
    (tensor_pb2.OUTPUT_KIND_TOP_K, {"values": (2,), "labels": (2,)}),
]


@pytest.mark.parametrize(("kind", "fields"), KINDS)
async def test_every_output_kind_comes_with_frames_and_without(served, channel, kind, fields):
    groups = Groups(channel)
    await groups.open(1, 4, output=tensor_pb2.OutputSpec(kind=kind, top_k=2))
    for k in (3, 0):
        await groups.send(call(1, frames(4, k)))
        outputs = (await groups.of(1)).outputs
        assert not outputs.HasField("place")  # it is all of it
        for name in ("values", "labels"):
            assert outputs.outputs.HasField(name) == (name in fields)
            if name in fields:
                assert tensors.decode(getattr(outputs.outputs, name)).shape == (4 * k, *fields[name])


async def test_set_comes_before_reset_before_frames_before_get_before_end(serve):
    async with serve({"lstm": LSTM}) as served, open_channel(served.address) as channel:
        groups = Groups(channel)
        given, initial = states(LSTM, 3, 1), states(LSTM, 5, 2)
        twin = PlainGroup(served.networks["lstm"], 5, initial)
        x = frames(2, 4)
        await groups.send(
            opening(1, 5, "lstm", initial_state=state_message(initial)),
            call(1, x, streams=[4, 1], set=([1, 2, 4], given), reset=[2, 1, 0], get=[4, 2, 0], end=True),
        )
        twin.set([1, 2, 4], given)
        twin.reset([2, 1, 0])
        expected = twin.run([4, 1], x)
        assert (await groups.of(1)).HasField("opened")
        np.testing.assert_allclose((await groups.outputs(1, 2, 4))[0], expected, **CLOSE)
        assert_states((await groups.states(1, 3))[0], twin.get([4, 2, 0]))
        assert_states((await groups.states(1, 5, "ended"))[0], twin.states)
        assert await groups.rest() == []
        await assert_free(served)


async def test_one_entry_opens_feeds_and_ends(served, channel, plain):
    groups, twin, x = Groups(channel), plain(3), frames(3, 4)
    await groups.send(opening(1, 3, x=x, call_of={"end": True, "get": "all"}))
    reply = await groups.of(1)
    assert reply.opened.weights_version == 1
    np.testing.assert_allclose(
        tensors.decode(reply.outputs.outputs.values), twin.run(range(3), x).reshape(12, 3), **CLOSE
    )
    assert_states((await groups.states(1, 3))[0], twin.states)
    assert_states((await groups.states(1, 3, "ended"))[0], twin.states)
    assert await groups.rest() == []


async def test_calls_without_frames_are_answered_by_done_by_states_or_by_the_end(served, channel, plain):
    groups, twin = Groups(channel), plain(3)
    given = states(SMALL, 3)
    twin.set(range(3), given)
    twin.reset([1])
    await groups.send(
        opening(1, 3),
        call(1, set=("all", given)),
        call(1, reset=[1]),
        call(1, get=[2, 1]),
        call(1, set=([0], states(SMALL, 1, 5)), reset="all", get="all"),
        call(1, set=("all", given)),
        call(1, end=True),
    )
    assert (await groups.of(1)).HasField("opened")
    await groups.done(1)
    await groups.done(1)
    assert_states((await groups.states(1, 2))[0], twin.get([2, 1]))
    assert_states((await groups.states(1, 3))[0], [np.zeros((1, 3, 7))])
    await groups.done(1)
    assert_states((await groups.states(1, 3, "ended"))[0], given)
    assert await groups.rest() == []
    await assert_free(served)


async def test_snapshots_come_behind_the_calls_that_complete_their_steps(served, channel, plain):
    groups, twin = Groups(channel), plain(3)
    await groups.open(1, 3, snapshot_interval_steps=10)
    snapshots, clock = [], 0
    for seed, (streams, k) in enumerate([(None, 9), ([1], 1), ([0, 2], 9), (None, 25), (None, 1), (None, 4)]):
        which = list(range(3)) if streams is None else streams
        x = frames(len(which), k, seed)
        await groups.send(call(1, x, streams=streams))
        await groups.outputs(1, len(which), k)
        twin.run(which, x)
        before, clock = clock, clock + k
        if clock // 10 > before // 10:
            got, replies = await groups.states(1, 3, "snapshot")
            assert tensors.decode(replies[0].snapshot.steps).tolist() == twin.steps.tolist()
            assert_states(got, twin.states)
            snapshots.append(clock)
    assert snapshots == [10, 44]
    await groups.send(call(1, frames(3, 1), get=[1], end=True))  # one is due before what was asked for, and the end
    await groups.outputs(1, 3, 1)
    twin.run(range(3), frames(3, 1))
    assert_states((await groups.states(1, 3, "snapshot"))[0], twin.states)
    assert_states((await groups.states(1, 1))[0], twin.get([1]))
    assert_states((await groups.states(1, 3, "ended"))[0], twin.states)
    assert await groups.rest() == []


CUTS = {
    "by steps": [(0, 0, 6, 2), (0, 2, 6, 5), (0, 7, 6, 1)],
    "by streams": [(0, 0, 1, 8), (1, 0, 3, 8), (4, 0, 2, 8)],
    "by both": [(0, 0, 4, 3), (4, 0, 2, 3), (0, 3, 1, 5), (1, 3, 5, 5)],
    "one": [(0, 0, 6, 8)],
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("streams", [None, [5, 0, 3, 7, 2, 1]])
async def test_a_call_in_parts_is_one_call(served, channel, plain, cut, streams):
    n = 6 if streams is None else 9
    groups, twin = Groups(channel), plain(n)
    which = list(range(6)) if streams is None else streams
    await groups.open(1, n)
    given = states(SMALL, 2)
    for seed in range(2):
        x = frames(6, 8, seed)
        twin.set([0, 2], given)
        twin.reset([1])
        for part in parts_of(1, x, CUTS[cut], streams=streams, set=([0, 2], given), reset=[1], get=[2, 1]):
            await groups.send(part)
        np.testing.assert_allclose((await groups.outputs(1, 6, 8))[0], twin.run(which, x), **CLOSE)
        assert_states((await groups.states(1, 2))[0], twin.get([2, 1]))
    await groups.send(call(1, cancel=True))
    assert await groups.rest() == []
    await assert_free(served)


async def test_groups_single_streams_and_whole_sequences_share_a_call(served, channel, plain):
    groups, twins = Groups(channel), {number: plain(number) for number in (2, 3, 40)}
    for number in twins:
        await groups.open(number, number)
    x = frames(1, 20)[0]
    await groups.send(
        *[call(number, frames(number, 6, number)) for number in twins],
        entry(100, x, open="small", end=True),
        entry(101, x, open="small"),
    )
    await groups.send(*[call(number, end=True) for number in twins])
    outputs, final = {}, {}
    for reply in await groups.rest():
        number = reply.group if isinstance(reply, pb.GroupResponse) else reply.session
        if reply.HasField("outputs"):
            outputs[number] = tensors.decode(reply.outputs.outputs.values)
        if reply.HasField("ended") and number in twins:
            final[number] = tensors.decode(reply.ended.states.state.hidden)
    for number, twin in twins.items():
        expected = twin.run(range(number), frames(number, 6, number))
        np.testing.assert_allclose(outputs[number].reshape(expected.shape), expected, **CLOSE)
        assert_states([final[number]], twin.states)
    for number in (100, 101):
        np.testing.assert_allclose(outputs[number], served.expected("small", x)[0], **CLOSE)
    await assert_free(served)


@pytest.mark.parametrize("n", [3, 8, 20])
async def test_a_group_wider_than_a_slice_runs_in_several(serve, n):
    async with serve(max_batch_steps=8, window_steps=64) as served, open_channel(served.address) as channel:
        groups, twin = Groups(channel), PlainGroup(served.networks["small"], n)
        await groups.open(1, n, snapshot_interval_steps=20)
        which, given = list(range(n))[::-2], states(SMALL, n)
        for k in (3, 0, 1, 2):
            x, y = frames(n, k), frames(len(which), k + 1, seed=1)
            await groups.send(call(1, x, get="all"), call(1, y, streams=which, set=("all", given), reset=[0]))
            np.testing.assert_allclose((await groups.outputs(1, n, k))[0], twin.run(range(n), x), **CLOSE)
            assert_states((await groups.states(1, n))[0], twin.states)
            twin.set(range(n), given)
            twin.reset([0])
            steps = twin.steps[which]
            got, first, _ = await groups.outputs(1, len(which), k + 1)
            np.testing.assert_array_equal(first, steps)
            np.testing.assert_allclose(got, twin.run(which, y), **CLOSE)
        x = frames(n, 9)
        await groups.send(call(1, x, end=True))
        np.testing.assert_allclose((await groups.outputs(1, n, 9))[0], twin.run(range(n), x), **CLOSE)
        got, replies = await groups.states(1, n, "snapshot")
        assert tensors.decode(replies[0].snapshot.steps).tolist() == twin.steps.tolist()
        assert_states(got, twin.states)
        assert_states((await groups.states(1, n, "ended"))[0], twin.states)
        assert await groups.rest() == []
        await assert_free(served)


async def test_large_outputs_and_states_come_in_blocks(serve):
    wide = ModelSpec("elman", 5, 1800, 3000)
    async with serve({"wide": wide}) as served, open_channel(served.address) as channel:
        groups = Groups(channel)
        n, k = 150, 2
        initial = states(wide, n)
        twin = PlainGroup(served.networks["wide"], n, initial)
        x = frames(n, k)
        await groups.send(opening(1, n, "wide", initial_state=state_message(initial)), call(1, x, get="all"))
        assert (await groups.of(1)).opened.window_steps == 4  # of 8 MiB of outputs
        got, _, blocks = await groups.outputs(1, n, k)
        assert len(blocks) > 3
        some = [0, 70, 149]
        np.testing.assert_allclose(got[some], twin.run(some, x[some]), **near(rtol=1e-3, atol=1e-4))
        got, replies = await groups.states(1, n)
        assert len(replies) > 3
        np.testing.assert_allclose(got[0][:, some], twin.get(some)[0], **near(rtol=1e-3, atol=1e-4))
        await groups.send(call(1, end=True))
        again, replies = await groups.states(1, n, "ended")
        np.testing.assert_array_equal(again[0], got[0])
        assert [reply.ended.HasField("timing") for reply in replies] == [True] + [False] * (len(replies) - 1)
        assert all(message.ByteSize() <= 1 << 20 for message in groups.messages)
        await assert_free(served)


async def test_the_window_counts_steps_of_a_stream_and_acknowledgements_widen_it(serve):
    async with serve(window_steps=64) as served, open_channel(served.address) as channel:
        groups = Groups(channel)
        assert (await groups.open(1, 10)).window_steps == 64
        got = 0
        for _ in range(4):
            await groups.send(call(1, frames(10, 50), acknowledged_steps=got))
            await groups.outputs(1, 10, 50)
            got += 50
        await groups.send(call(1, acknowledged_steps=200))
        await groups.send(call(1, frames(10, 60)), call(1, frames(10, 4)), call(1, frames(10, 1)))
        failure = await groups.last_error(1)
        assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "WINDOW_EXCEEDED")
        await assert_free(served)
        await assert_serves(served, channel)


async def test_a_call_larger_than_the_window_runs_where_none_waits_and_others_without_frames_behind_it(serve):
    async with serve(window_steps=64) as served, open_channel(served.address) as channel:
        groups, twin = Groups(channel), PlainGroup(served.networks["small"], 3)
        x = frames(3, 200)
        await groups.send(
            opening(1, 3), call(1, x), call(1, get="all"), call(1, frames(3, 0)), call(1, reset=[0]), call(1, end=True)
        )
        assert (await groups.of(1)).HasField("opened")
        np.testing.assert_allclose((await groups.outputs(1, 3, 200))[0], twin.run(range(3), x), **CLOSE)
        assert_states((await groups.states(1, 3))[0], twin.states)
        await groups.outputs(1, 3, 0)
        await groups.done(1)
        twin.reset([0])
        assert_states((await groups.states(1, 3, "ended"))[0], twin.states)
        assert await groups.rest() == []


async def test_calls_within_the_window_are_taken_however_many_slices_they_need(serve):
    wide = ModelSpec("elman", 5, 7, 30_000)
    async with serve({"wide": wide}, max_batch_steps=8) as served, open_channel(served.address) as channel:
        groups, n = Groups(channel), 30
        opened = await groups.open(1, n, "wide")
        assert opened.window_steps == 2  # of 8 MiB of outputs
        await groups.send(
            *[call(1, frames(n, 1)) for _ in range(2)], *[call(1, reset=[number]) for number in range(20)]
        )
        for _ in range(2):
            await groups.outputs(1, n, 1)
        for _ in range(20):
            await groups.done(1)


async def test_what_has_no_steps_is_bounded_as_well(serve):
    async with serve(window_steps=64) as served, open_channel(served.address) as channel:
        groups = Groups(channel)
        await groups.open(1, 3)
        await groups.send(*[call(1, reset=[0]) for _ in range(64)])
        for _ in range(64):
            await groups.done(1)
        await groups.send(*[call(1, reset=[0]) for _ in range(300)])
        failure = await groups.last_error(1)
        assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "WINDOW_EXCEEDED")
        await assert_free(served)


async def test_metrics_count_streams_rows_and_groups(served, channel):
    groups = Groups(channel)
    await groups.open(1, 30)
    await groups.open(2, 5)
    assert served.value("active_streams", model="small") == served.engine.open_sessions == 35
    await groups.send(call(1, frames(30, 4)), call(1, frames(2, 3), streams=[1, 2]))
    await groups.outputs(1, 30, 4)
    await groups.outputs(1, 2, 3)
    await until(lambda: served.value("steps_total", op="stream", model="small") == 126)
    await groups.send(call(1, end=True), call(2, cancel=True), opening(3, 0), call(4, end=True))
    await groups.rest()
    method = "seqloom.v1.InferenceService/StreamInfer/group"
    for code in ("OK", "CANCELLED", "INVALID_ARGUMENT", "FAILED_PRECONDITION"):
        assert served.value("requests_total", method=method, code=code) == 1, code
    assert served.value("requests_total", method="seqloom.v1.InferenceService/StreamInfer/session") == 0
    await assert_free(served)


async def test_the_half_close_ends_groups_behind_what_was_sent(served, channel, plain):
    groups, twin, x = Groups(channel), plain(3), frames(3, 9)
    await groups.open(1, 3)
    await groups.send(call(1, x))
    await groups.call.done_writing()
    np.testing.assert_allclose((await groups.outputs(1, 3, 9))[0], twin.run(range(3), x), **CLOSE)
    assert_states((await groups.states(1, 3, "ended"))[0], twin.states)
    assert await groups.next() is None
    await assert_free(served)


async def test_the_half_close_drops_a_call_whose_last_part_never_came(served, channel):
    groups = Groups(channel)
    await groups.open(1, 6)
    first, *_ = parts_of(1, frames(6, 8), CUTS["by steps"])
    await groups.send(first)
    (last,) = await groups.rest()
    np.testing.assert_array_equal(tensors.decode(last.ended.states.state.hidden), np.zeros((1, 6, 7)))
    await assert_free(served)


async def test_a_cancelled_group_is_gone_at_once_and_its_number_free(served, channel):
    groups = Groups(channel)
    await groups.open(1, 6)
    first, *_ = parts_of(1, frames(6, 8), CUTS["by steps"])
    await groups.send(call(1, frames(6, 100), get="all"), first, call(1, cancel=True))
    await until(lambda: served.engine.open_sessions == 0)
    await groups.send(call(1, acknowledged_steps=3))
    assert (await groups.open(1, 2)).weights_version == 1
    await groups.rest()
    await assert_free(served)


async def test_dropping_the_call_drops_its_groups(served, channel):
    groups = Groups(channel)
    for number in range(5):
        await groups.open(number, 20)
    first, *_ = parts_of(3, frames(20, 8), [(0, 0, 20, 1), (0, 1, 20, 7)])
    await groups.send(*[call(number, frames(20, 50), get=[1]) for number in range(5)], first)
    groups.call.cancel()
    await assert_free(served)
    await assert_serves(served, channel)


async def test_two_calls_in_parts_of_which_one_never_ends_hold_nothing_up(served, channel, plain):
    groups, n = Groups(channel), 1000
    await groups.open(1, n)
    await groups.open(2, n)
    steps = (40 << 20) // (n * 20)
    for number in (1, 2):  # 40 MiB each are announced, and little of it comes
        await groups.send(call(number, frames(n, 1), place=(0, 0, n, steps), more=True))
    await groups.send(call(1, cancel=True), call(2, cancel=True), opening(3, 1, call_of={"end": True}))
    await groups.states(3, 1, "ended")
    await assert_free(served)
