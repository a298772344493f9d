"""Whole sequences that say their length before their frames come: told first, held to it, and never waited for."""

import numpy as np
import pytest
from helpers.gate import Gate, keep_cost
from helpers.raw_calls import Sessions, assert_serves, entry, failure_of, frames
from helpers.real_server import open_channel, until
from helpers.tolerances import near
from seqloom import tensors
from seqloom.v1 import inference_service_pb2 as pb

CLOSE = near(rtol=1e-4, atol=1e-5)


def whole(total, **more):
    return pb.OpenSession(model="small", whole_sequence=True, total_steps=total, **more)


def backlog_of(served):
    backlog = served.engine._scheduler._admission.backlog
    return backlog.seconds, backlog.sequences, backlog._lanes


def reservations(served):
    return sum(lane.reservations for lane in served.engine._scheduler._admission.backlog._lanes.values())


async def assert_nothing_leaked(served, channel):
    await until(lambda: not served.engine.sequences)
    assert backlog_of(served) == (0, 0, {})
    assert served.engine._scheduler.next_deadline() is None
    assert not served.engine._scheduler._bounds._callers
    await assert_serves(served, channel)


async def test_asked_first_it_is_told_at_once_that_it_may_come_and_then_sends_its_frames(served, channel):
    sessions = Sessions(channel)
    x = frames(30)
    await sessions.send(entry(1, open=whole(30, timeout_seconds=60)))
    assert (await sessions.next()).HasField("opened")
    assert reservations(served) == 1
    await sessions.send(entry(1, x[:10]))
    await sessions.send(entry(1, x[10:], end=True))
    values, last = await sessions.until_ended(1)
    np.testing.assert_allclose(values, served.expected("small", x)[0], **CLOSE)
    assert last.ended.steps == 30
    await assert_nothing_leaked(served, channel)
    assert served.value("steps_total", op="stream") == served.value("wasted_steps_total") == 0


async def test_asked_first_it_is_refused_before_its_frames_are_sent(served, channel):
    weights = served.engine.registry.current("small")
    gate = Gate(weights)
    sessions = Sessions(channel)
    await sessions.send(entry(1, frames(3), open="small", end=True))
    await gate.arrived()
    keep_cost(weights, per_slice=1.0, per_step=1.0, per_cell=1.0)
    await sessions.send(entry(2, open=whole(100, timeout_seconds=20)))
    failure = await sessions.error(2)
    assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert failure.retry_after > 0
    assert served.value("rejected_total", reason="too_late") == served.value("rejected_total") == 1
    keep_cost(weights, per_slice=1e-6, per_step=1e-6, per_cell=1e-6)
    gate.open()
    await sessions.send(entry(2, frames(10)))  # these crossed the refusal
    assert (await sessions.until_ended(1))[1].ended.steps == 3
    await assert_nothing_leaked(served, channel)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([entry(1, frames(20)), entry(1, frames(11))], "is 30, but the sequence has 31 steps so far"),
        ([entry(1, frames(20)), entry(1, frames(9), end=True)], "is 30, but the sequence has 29 steps at its end"),
        ([entry(1, end=True)], "is 30, but the sequence has 0 steps at its end"),
        ([entry(1, frames(31), end=True)], "is 30, but the sequence has 31 steps"),
    ],
)
async def test_one_that_does_not_keep_to_what_it_said_is_told_so(served, channel, entries, words):
    sessions = Sessions(channel)
    await sessions.send(entry(1, open=whole(30)), *entries)
    failure = await sessions.error(1)
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert failure.fields == ["entries.open.total_steps"]
    assert words in failure.message
    await assert_nothing_leaked(served, channel)


async def test_a_half_closed_call_that_left_one_unfinished_is_told_so_and_answers_the_others(served, channel):
    sessions = Sessions(channel)
    x = frames(10)
    await sessions.send(entry(1, x, open=whole(30)), entry(2, x, open="small"), entry(3, x, open=whole(10)))
    last = {reply.session: reply for reply in await sessions.rest()}
    failure = failure_of(last[1].error)
    assert (failure.code, failure.fields) == ("INVALID_ARGUMENT", ["entries.open.total_steps"])
    assert last[2].ended.steps == last[3].ended.steps == 10
    await assert_nothing_leaked(served, channel)


async def test_a_length_over_the_limit_or_of_a_live_session_is_refused(serve):
    async with serve(max_steps_per_sequence=20) as served, open_channel(served.address) as channel:
        sessions = Sessions(channel)
        for total in (21, (1 << 64) - 1):
            await sessions.send(entry(1, open=whole(total)))
            failure = await sessions.error(1)
            assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "OVER_LIMIT")
            assert f"{total} steps: expected at most 20" in failure.message
        await sessions.send(entry(1, frames(3), open=pb.OpenSession(model="small", total_steps=3)))
        failure = await sessions.error(1)
        assert (failure.code, failure.fields) == ("INVALID_ARGUMENT", ["entries.open.total_steps"])
        assert served.value("rejected_total") == 0
        await assert_nothing_leaked(served, channel)


@pytest.mark.parametrize("sent", [0, 10])
async def test_one_that_asks_and_sends_no_more_is_ended_at_its_deadline(served, channel, sent):
    sessions = Sessions(channel)
    await sessions.send(entry(1, open=whole(30, timeout_seconds=0.3)))
    assert (await sessions.next()).HasField("opened")
    if sent:
        await sessions.send(entry(1, frames(sent)))
        assert (await sessions.next()).HasField("outputs")
    failure = await sessions.error(1)
    assert failure.code == "DEADLINE_EXCEEDED"
    assert served.value("rejected_total") == 0
    assert served.value("wasted_steps_total") == sent
    await assert_nothing_leaked(served, channel)


async def test_one_that_asks_and_goes_leaves_nothing(served, channel):
    sessions = Sessions(channel)
    await sessions.send(entry(1, open=whole(30)), entry(2, open=whole(1000)))
    assert (await sessions.next()).HasField("opened")
    await sessions.send(entry(1, cancel=True))
    await until(lambda: reservations(served) == 1)
    sessions.call.cancel()
    await assert_nothing_leaked(served, channel)


async def test_a_tensor_of_absurdly_many_steps_is_told_what_is_wrong_however_full_the_queue_is(served, channel):
    gate = Gate(served.engine.registry.current("small"))
    sessions = Sessions(channel)
    await sessions.send(entry(1, frames(3), open="small", end=True))
    await gate.arrived()
    for number, shape in enumerate(([(1 << 63) - 1, 5], [-1, 5], [2_000_000, 5]), 2):
        tensor = tensors.encode(frames(3))
        tensor.shape[:] = shape
        await sessions.send(
            pb.SessionRequest(session=number, open=whole(0, timeout_seconds=60), frames=tensor, end=True)
        )
        failure = await sessions.error(number)
        assert (failure.code, failure.retry_after) == ("INVALID_ARGUMENT", None), failure
    gate.open()
    assert (await sessions.until_ended(1))[1].ended.steps == 3
    await assert_nothing_leaked(served, channel)
