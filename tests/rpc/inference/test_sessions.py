"""StreamInfer over a real channel: live sessions and whole sequences, many to a call, each with its own outputs."""

import numpy as np
from helpers.raw_calls import Sessions, assert_serves, entry, frames
from helpers.real_server import open_channel, until
from helpers.tolerances import near
from seqloom import tensors
from seqloom.v1 import inference_service_pb2 as pb
from seqloom.v1 import tensor_pb2
from seqloom_server.nn.spec import ModelSpec

CLOSE = near(rtol=1e-4, atol=1e-5)


async def test_chunks_of_any_sizes_give_the_outputs_of_the_whole(served, channel):
    x = frames(40)
    expected, final = served.expected("small", x)
    sessions = Sessions(channel)
    first = await sessions.open(3)
    assert first.weights_version == 1
    assert first.window_steps == 4096
    for start, end in ((0, 1), (1, 8), (8, 8), (8, 40)):
        await sessions.send(entry(3, x[start:end]))
        got, steps = [], 0
        while steps < end - start or not got:
            outputs = (await sessions.next()).outputs
            assert outputs.first_step == start + steps
            got.append(tensors.decode(outputs.outputs.values))
            steps += len(got[-1])
        np.testing.assert_allclose(np.concatenate(got), expected[start:end], **CLOSE)
    await sessions.send(entry(3, end=True))
    last = await sessions.next()
    assert last.ended.steps == 40
    np.testing.assert_allclose(tensors.decode(last.ended.final_state.hidden), final[0], **CLOSE)
    assert await sessions.rest() == []
    assert served.value("active_streams") == 0


async def test_a_chunk_of_no_steps_is_answered_by_an_empty_output(served, channel):
    kinds = [
        (tensor_pb2.OutputSpec(), (0, 3), None),
        (tensor_pb2.OutputSpec(kind=tensor_pb2.OUTPUT_KIND_LABELS), None, (0,)),
        (tensor_pb2.OutputSpec(kind=tensor_pb2.OUTPUT_KIND_HIDDEN), (0, 7), None),
        (tensor_pb2.OutputSpec(kind=tensor_pb2.OUTPUT_KIND_TOP_K, top_k=2), (0, 2), (0, 2)),
    ]
    sessions = Sessions(channel)
    for number, (output, values, labels) in enumerate(kinds):
        await sessions.open(number, output=output)
        await sessions.send(entry(number, frames(0)))
        outputs = (await sessions.next()).outputs
        assert outputs.first_step == 0
        for tensor, shape in (("values", values), ("labels", labels)):
            assert outputs.outputs.HasField(tensor) == (shape is not None)
            if shape is not None:
                assert tensors.decode(getattr(outputs.outputs, tensor)).shape == shape


async def test_one_entry_may_open_feed_and_end_and_is_a_whole_sequence(served, channel):
    x = frames(25)
    sessions = Sessions(channel)
    await sessions.send(entry(1, x, open="small", end=True))
    values, last = await sessions.until_ended(1)
    np.testing.assert_allclose(values, served.expected("small", x)[0], **CLOSE)
    assert last.ended.timing.compute_seconds > 0
    await until(lambda: served.value("steps_total", op="infer") == 25)
    assert served.value("steps_total", op="stream") == 0


async def test_the_first_entry_of_a_whole_sequence_that_ends_at_once_tells_what_was_opened(served, channel):
    sessions = Sessions(channel)
    await sessions.send(entry(1, frames(2), open="small", end=True))
    first = await sessions.next()
    assert first.opened.weights_version == 1
    assert first.opened.window_steps >= 64


async def test_a_whole_sequence_in_several_entries_takes_its_turn_as_one(served, channel):
    x = frames(30)
    sessions = Sessions(channel)
    await sessions.send(entry(1, x[:10], open=pb.OpenSession(model="small", whole_sequence=True)))
    await sessions.send(entry(1, x[10:], end=True))
    values, _ = await sessions.until_ended(1)
    np.testing.assert_allclose(values, served.expected("small", x)[0], **CLOSE)
    await until(lambda: served.value("steps_total", op="infer") == 30)


async def test_what_was_sent_before_the_half_close_is_answered_and_the_session_ended(served, channel):
    x = frames(500)
    sessions = Sessions(channel)
    await sessions.send(entry(1, x, open="small"))
    entries = await sessions.rest()
    values = np.concatenate([tensors.decode(e.outputs.outputs.values) for e in entries if e.HasField("outputs")])
    np.testing.assert_allclose(values, served.expected("small", x)[0], **CLOSE)
    assert entries[-1].ended.steps == 500


async def test_a_reset_zeroes_the_state_before_the_frames_of_its_entry(served, channel):
    x, y = frames(6, seed=1), frames(5, seed=2)
    sessions = Sessions(channel)
    await sessions.open(1)
    await sessions.send(entry(1, x), entry(1, y, reset=True), entry(1, reset=True), entry(1, x, end=True))
    values, last = await sessions.until_ended(1)
    expected = np.concatenate([served.expected("small", part)[0] for part in (x, y, x)])
    np.testing.assert_allclose(values, expected, **CLOSE)
    assert last.ended.steps == 17


async def test_snapshots_come_at_their_steps_and_a_session_goes_on_from_one(served, channel):
    x = frames(35)
    sessions = Sessions(channel)
    await sessions.open(1, snapshot_interval_steps=10)
    await sessions.send(*[entry(1, x[start : start + 7]) for start in range(0, 35, 7)], entry(1, end=True))
    snapshots, steps = {}, 0
    while not (reply := await sessions.next()).HasField("ended"):
        steps += len(tensors.decode(reply.outputs.outputs.values))
        if reply.HasField("snapshot"):
            assert reply.snapshot.steps == steps  # it belongs to the end of this entry's outputs
            snapshots[steps] = reply.snapshot.state
    assert sorted(snapshots) == [10, 20, 30]
    for at, state in snapshots.items():
        np.testing.assert_allclose(tensors.decode(state.hidden), served.expected("small", x[:at])[1][0], **CLOSE)
    await sessions.send(entry(2, x[20:], open=pb.OpenSession(model="small", initial_state=snapshots[20]), end=True))
    values, _ = await sessions.until_ended(2)
    np.testing.assert_allclose(values, served.expected("small", x)[0][20:], **CLOSE)


async def test_many_sessions_of_one_call_each_get_their_own_outputs_in_order(served, channel):
    xs = {number: frames(20 + number % 7, seed=number) for number in range(100)}
    sessions = Sessions(channel)
    await sessions.send(*[entry(number, open="small") for number in xs])
    for start in range(0, 30, 3):
        await sessions.send(*[entry(number, x[start : start + 3]) for number, x in xs.items() if start < len(x)])
    steps, parts = dict.fromkeys(xs, 0), {number: [] for number in xs}
    for reply in await sessions.rest():
        if reply.HasField("outputs"):
            assert reply.outputs.first_step == steps[reply.session]
            parts[reply.session].append(tensors.decode(reply.outputs.outputs.values))
            steps[reply.session] += len(parts[reply.session][-1])
    for number, x in xs.items():
        np.testing.assert_allclose(np.concatenate(parts[number]), served.expected("small", x)[0], **CLOSE)


async def test_long_outputs_are_cut_so_that_no_message_is_above_the_limit_of_a_stream(serve):
    wide = ModelSpec("elman", 5, 7, 3000)
    async with serve({"wide": wide}) as served, open_channel(served.address) as channel:
        sessions = Sessions(channel)
        x = frames(300)
        await sessions.send(*[entry(number, x, open="wide", end=True) for number in range(3)])
        await sessions.call.done_writing()
        parts = {number: [] for number in range(3)}
        async for message in sessions.call:
            assert message.ByteSize() <= 1 << 20
            for reply in message.entries:
                parts[reply.session].append(tensors.decode(reply.outputs.outputs.values))
        for part in parts.values():
            np.testing.assert_allclose(np.concatenate(part), served.expected("wide", x)[0], **CLOSE)


async def test_acknowledgements_while_the_end_waits_widen_nothing_and_break_nothing(served, channel):
    sessions = Sessions(channel)
    x = frames(3000)
    await sessions.send(entry(1, x, open="small"), entry(1, end=True), entry(1, acknowledged_steps=10))
    values, last = await sessions.until_ended(1)
    assert last.HasField("ended")
    np.testing.assert_allclose(values, served.expected("small", x)[0], **CLOSE)


async def test_acknowledged_steps_make_room_in_the_window(serve):
    async with serve(window_steps=64) as served, open_channel(served.address) as channel:
        sessions = Sessions(channel)
        assert (await sessions.open(1)).window_steps == 64
        x = frames(200)
        got = 0
        for start in range(0, 200, 50):
            await sessions.send(entry(1, x[start : start + 50], acknowledged_steps=start))
            while got < start + 50:
                got += len(tensors.decode((await sessions.next()).outputs.outputs.values))
        await sessions.send(entry(1, frames(65), acknowledged_steps=200))
        assert (await sessions.error(1)).reason == "WINDOW_EXCEEDED"


async def test_no_window_is_below_what_may_be_sent_before_it_is_known(serve):
    async with serve({"wide": ModelSpec("elman", 5, 2, 200_000)}) as served, open_channel(served.address) as channel:
        sessions = Sessions(channel)
        await sessions.send(entry(1, open="wide"))
        assert (await sessions.next()).opened.window_steps == 64


async def test_a_cancelled_session_is_gone_at_once_and_nothing_more_is_sent_for_it(served, channel):
    sessions = Sessions(channel)
    await sessions.open(1)
    await sessions.send(entry(1, frames(100)), entry(1, cancel=True), entry(2, frames(3), open="small", end=True))
    replies = await sessions.rest()
    assert {reply.session for reply in replies} == {2}
    assert served.value("active_streams") == 0


async def test_dropping_the_call_drops_its_sessions(served, channel):
    sessions = Sessions(channel)
    for number in range(20):
        await sessions.open(number)
    await sessions.send(*[entry(number, frames(50)) for number in range(20)])
    assert served.value("active_streams") == 20
    sessions.call.cancel()
    await until(lambda: served.value("active_streams") == 0)
    await until(lambda: served.value("queue_items") == 0)
    assert served.value("requests_total", method="seqloom.v1.InferenceService/StreamInfer", code="CANCELLED") == 1
    await assert_serves(served, channel)
