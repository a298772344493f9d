"""What is wrong with a session, sent over a real channel: told to that session alone, and everything else goes on."""

import asyncio

import numpy as np
import pytest
from helpers.raw_calls import Sessions, assert_serves, entry, failure_of, frames, refused
from helpers.real_server import open_channel, until
from helpers.tolerances import near
from seqloom import tensors
from seqloom.v1 import inference_service_pb2 as pb
from seqloom.v1 import tensor_pb2
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc.inference import outbox

CLOSE = near(rtol=1e-4, atol=1e-5)


# what is sent after a good session 1 was opened, and what session 1, or else session 2, is told
WRONG = {
    "frames before open": (
        2,
        [entry(2, frames(3))],
        "FAILED_PRECONDITION",
        "SESSION_NOT_OPEN",
        "session 2 is not open",
    ),
    "an end before open": (2, [entry(2, end=True)], "FAILED_PRECONDITION", "SESSION_NOT_OPEN", "session 2 is not open"),
    "a number opened twice": (
        1,
        [entry(1, open="small")],
        "FAILED_PRECONDITION",
        "SESSION_EXISTS",
        "session 1 is open already",
    ),
    "frames after end": (1, [entry(1, end=True), entry(1, frames(2))], "FAILED_PRECONDITION", "SESSION_ENDED", "ended"),
    "an unknown model": (2, [entry(2, open="smell")], "NOT_FOUND", "MODEL_NOT_FOUND", "'smell'"),
    "another weights version": (
        2,
        [entry(2, open=pb.OpenSession(model="small", weights_version=9))],
        "FAILED_PRECONDITION",
        "VERSION_MISMATCH",
        "version 1 is served",
    ),
    "an unknown output": (
        2,
        [entry(2, open=pb.OpenSession(model="small", output=tensor_pb2.OutputSpec(kind=99)))],
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
        "entries.open.output.kind",
    ),
    "a state of two sequences": (
        2,
        [
            entry(
                2,
                open=pb.OpenSession(
                    model="small", initial_state=tensor_pb2.State(hidden=tensors.encode(np.zeros((1, 2, 7), "f4")))
                ),
            )
        ],
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
        "entries.open.initial_state.hidden",
    ),
    "a timeout that is no time": (
        2,
        [entry(2, open=pb.OpenSession(model="small", timeout_seconds=float("nan")))],
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
        "entries.open.timeout_seconds",
    ),
    "another width": (1, [entry(1, frames(3, width=4))], "INVALID_ARGUMENT", "INVALID_FIELD", "[3, 4]"),
    "another rank": (1, [entry(1, np.zeros(5, "f4"))], "INVALID_ARGUMENT", "INVALID_FIELD", "[5]"),
    "another dtype": (1, [entry(1, frames(3).astype("f8"))], "INVALID_ARGUMENT", "INVALID_FIELD", "float64"),
    "NaN": (1, [entry(1, frames(3) * np.nan)], "INVALID_ARGUMENT", "INVALID_FIELD", "nan"),
    "bytes missing": (
        1,
        [pb.SessionRequest(session=1, frames=tensor_pb2.Tensor(data_type=1, shape=[2, 5], data=bytes(39)))],
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
        "39 bytes",
    ),
    "an acknowledgement of what never came": (
        1,
        [entry(1, acknowledged_steps=5)],
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
        "expected at most 0, the steps",
    ),
    "more than the window": (
        1,
        [entry(1, frames(1000)) for _ in range(5)],
        "FAILED_PRECONDITION",
        "WINDOW_EXCEEDED",
        "expected at most 4096, the session",
    ),
    "empty chunks without end": (
        1,
        [entry(1, frames(0)) for _ in range(5000)],
        "FAILED_PRECONDITION",
        "WINDOW_EXCEEDED",
        "4096 chunks are queued",
    ),
}


@pytest.mark.parametrize("what", WRONG)
async def test_what_is_wrong_fails_that_session_alone_and_the_call_and_the_server_go_on(served, channel, what):
    number, entries, code, reason, words = WRONG[what]
    sessions = Sessions(channel)
    await sessions.open(1)
    await sessions.open(7)
    await sessions.send(*entries)
    while not (reply := await sessions.next()).HasField("error"):
        assert reply.session == number
    failure = failure_of(reply.error)
    assert (reply.session, failure.code, failure.reason) == (number, code, reason)
    assert words in failure.message
    assert failure.request_id
    x = frames(8)
    await sessions.send(entry(7, x, end=True))
    values, last = await sessions.until_ended(7)
    np.testing.assert_allclose(values, served.expected("small", x)[0], **CLOSE)
    assert last.HasField("ended")
    # the number is free again
    await sessions.send(entry(number, cancel=True), entry(number, x, open="small", end=True))
    values, _ = await sessions.until_ended(number)
    np.testing.assert_allclose(values, served.expected("small", x)[0], **CLOSE)
    await sessions.rest()
    await assert_serves(served, channel)
    assert served.value("active_streams") == 0


async def test_frames_after_a_session_has_ended_are_told_so_and_late_acknowledgements_are_no_matter(served, channel):
    sessions = Sessions(channel)
    await sessions.send(entry(1, frames(4), open="small", end=True))
    await sessions.until_ended(1)
    await sessions.send(entry(1, acknowledged_steps=4), entry(1, cancel=True))
    await sessions.send(entry(1, frames(4)))
    assert (await sessions.error(1)).reason == "SESSION_ENDED"
    assert await sessions.rest() == []


async def test_what_was_on_its_way_when_a_session_failed_raises_no_second_error(served, channel):
    sessions = Sessions(channel)
    await sessions.open(1)
    await sessions.send(entry(1, frames(2, width=9)), entry(1, frames(2)), entry(1, frames(2), end=True))
    await sessions.send(entry(1, acknowledged_steps=1))
    assert (await sessions.error(1)).reason == "INVALID_FIELD"
    assert await sessions.rest() == []


async def test_a_whole_sequence_in_a_stream_has_the_limit_of_any_sequence_and_a_live_one_has_none(serve):
    async with serve(max_steps_per_sequence=20) as served, open_channel(served.address) as channel:
        sessions = Sessions(channel)
        await sessions.send(entry(1, frames(21), open="small", end=True))
        failure = await sessions.error(1)
        assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "OVER_LIMIT")
        assert "at most 20" in failure.message
        await sessions.send(entry(2, frames(15), open=pb.OpenSession(model="small", whole_sequence=True)))
        await sessions.send(entry(2, frames(15)))
        assert served.value("active_streams") == 0
        while not (reply := await sessions.next()).HasField("error"):
            assert reply.session == 2
        assert failure_of(reply.error).reason == "OVER_LIMIT"
        await sessions.send(entry(3, frames(15), open="small"), entry(3, frames(15), end=True))
        values, _ = await sessions.until_ended(3)
        assert len(values) == 30


async def test_more_live_sessions_than_the_server_has_room_for_are_told_when_to_come_again(serve):
    async with serve(max_sessions=2) as served, open_channel(served.address) as channel:
        sessions = Sessions(channel)
        await sessions.open(1)
        await sessions.open(2)
        other = Sessions(channel)
        await other.send(entry(1, open="small"))
        failure = await other.error(1)
        assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert failure.retry_after > 0
        await sessions.send(entry(1, end=True))
        await sessions.until_ended(1)
        await other.open(2)


async def test_a_full_queue_fails_the_session_that_came_too_much_with_retry_info(serve):
    async with serve(max_queue_steps=50) as served, open_channel(served.address) as channel:
        sessions = Sessions(channel)
        await sessions.open(1)
        await sessions.open(2)
        await sessions.send(entry(1, frames(30), end=True), entry(2, frames(30), end=True))
        failure = await sessions.error(2)
        assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert failure.retry_after > 0
        _, last = await sessions.until_ended(1)
        assert last.HasField("ended")
        assert served.value("rejected_total", reason="queue_full") == 1
        await assert_serves(served, channel)


async def test_more_steps_at_once_than_may_ever_wait_are_refused_for_good(serve):
    async with serve(max_queue_steps=50) as served, open_channel(served.address) as channel:
        sessions = Sessions(channel)
        await sessions.open(1)
        await sessions.send(entry(1, frames(51)))
        failure = await sessions.error(1)
        assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "OVER_LIMIT")
        assert "at most 50" in failure.message
        await assert_serves(served, channel)


async def test_an_idle_session_is_ended_and_tells_so(serve):
    async with serve(idle_seconds=0.1) as served, open_channel(served.address) as channel:
        sessions = Sessions(channel)
        await sessions.open(1)
        failure = await sessions.error(1)
        assert (failure.code, failure.reason) == ("DEADLINE_EXCEEDED", "SESSION_IDLE")
        await assert_serves(served, channel)


async def test_bytes_that_are_no_message_end_the_call_as_an_invalid_argument(served, channel):
    call = channel.stream_stream("/seqloom.v1.InferenceService/StreamInfer")(timeout=30)
    await call.write(pb.StreamInferRequest(entries=[entry(1, open="small")]).SerializeToString())
    assert await call.read()
    await call.write(b"\xff\xff\xff\xff no message")
    failure = await refused(call.read())
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")
    assert "StreamInferRequest" in failure.message
    await until(lambda: served.value("active_streams") == 0)
    await assert_serves(served, channel)


async def test_a_message_of_more_entries_than_are_ever_taken_ends_the_call_with_the_limit(served, channel):
    sessions = Sessions(channel)
    await sessions.send(*[pb.SessionRequest(session=number, end=True) for number in range(20_000)])
    failure = await refused(sessions.next())
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "OVER_LIMIT")
    assert "at most 16384" in failure.message
    await assert_serves(served, channel)


async def test_a_caller_that_reads_nothing_is_read_from_no_longer(serve, monkeypatch):
    """Else what is due to it would grow without end; when it reads, all of it comes."""
    monkeypatch.setattr(outbox, "_MAX_UNREAD_BYTES", 1 << 20)
    wide = ModelSpec("elman", input_size=1000, hidden_size=7, output_size=3000)
    async with serve({"wide": wide}) as served, open_channel(served.address) as channel:
        sessions = Sessions(channel)
        x = frames(100, width=1000)

        async def send_far_more_than_the_transport_holds():
            for number in range(100):
                await sessions.send(entry(number, x, open="wide", end=True))
                await until(lambda: served.value("steps_total") == 100 * (number + 1))  # noqa: B023

        sending = asyncio.ensure_future(send_far_more_than_the_transport_holds())
        _, pending = await asyncio.wait([sending], timeout=3)
        assert pending, "the server went on reading"
        steps = 0
        while steps < 100 * 100:
            steps += len(tensors.decode((await sessions.next()).outputs.outputs.values))
        await sending
        assert all(reply.HasField("ended") for reply in await sessions.rest())
        await assert_serves(served, channel, "wide")
