"""Overload as callers see it: refused at the door with RetryInfo, or late in the queue, and nothing of it was run."""

import asyncio
import time

import grpc
import pytest
from helpers.gate import Gate, keep_cost
from helpers.raw_calls import Sessions, assert_serves, entry, frames, infer, infer_request, refused
from helpers.real_server import open_channel, until
from seqloom.v1 import inference_service_pb2 as pb
from seqloom.v1 import inference_service_pb2_grpc

CHEAP = {"per_slice": 1e-6, "per_step": 1e-7, "per_cell": 1e-7}
DEAR = {"per_slice": 100.0, "per_step": 100.0, "per_cell": 100.0}


def cost(served, **parts):
    keep_cost(served.engine.registry.current("small"), **parts)


async def hold(served, channel):
    """Returns the gate that holds the device with a slice of a call, and the call."""
    gate = Gate(served.engine.registry.current("small"))
    held = asyncio.ensure_future(infer(channel, infer_request("small", frames(4))))
    await gate.arrived()
    return gate, held


def call(channel, *xs, timeout):
    stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
    return stub.Infer(infer_request("small", *xs), timeout=timeout)


def assert_nothing_waits(served):
    backlog = served.engine._scheduler._admission.backlog
    assert (backlog.seconds, backlog.sequences, backlog._lanes) == (0, 0, {})
    assert served.engine._scheduler.next_deadline() is None


async def test_a_call_that_would_be_late_is_refused_at_the_door_and_nothing_of_it_runs(served, channel):
    gate, held = await hold(served, channel)
    cost(served, **DEAR)
    failure = await refused(call(channel, frames(3), frames(2), timeout=20))
    assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert failure.retry_after > 0
    assert served.value("rejected_total", reason="too_late") == served.value("rejected_total")
    assert served.value("refusal_duration_seconds_count") == 1
    gate.open()
    await held
    await until(lambda: served.value("steps_total") == 4)
    assert_nothing_waits(served)
    cost(served, **CHEAP)
    await assert_serves(served, channel)
    await until(lambda: served.value("steps_total") == 4 + 13)


async def test_a_session_that_would_be_late_is_refused_at_the_door_alone(served, channel):
    gate, held = await hold(served, channel)
    sessions = Sessions(channel)
    await sessions.open(1)
    cost(served, **DEAR)
    await sessions.send(entry(2, frames(3), open=pb.OpenSession(model="small", timeout_seconds=20), end=True))
    failure = await sessions.error(2)
    assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert failure.retry_after > 0
    assert served.value("rejected_total", reason="too_late") == served.value("rejected_total") == 1
    assert served.value("refusal_duration_seconds_count") == 1
    cost(served, **CHEAP)
    gate.open()
    await held
    await sessions.send(entry(1, frames(5), end=True))
    assert (await sessions.until_ended(1))[1].ended.steps == 5
    await until(lambda: served.value("steps_total") == 9)
    assert_nothing_waits(served)


async def test_a_deadline_that_passes_in_the_queue_costs_no_device_time(served, channel):
    cost(served, **CHEAP)
    gate, held = await hold(served, channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, frames(3), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: served.value("cancelled_total") == 1)
    assert served.value("steps_total") == served.value("rejected_total") == 0
    gate.open()
    await held
    await assert_serves(served, channel)
    await until(lambda: served.value("steps_total") == 4 + 13)
    assert_nothing_waits(served)


async def test_a_timeout_of_a_session_that_passes_in_the_queue_fails_it_alone(served, channel):
    cost(served, **CHEAP)
    gate, held = await hold(served, channel)
    sessions = Sessions(channel)
    await sessions.open(1)
    await sessions.send(entry(3, frames(3), open=pb.OpenSession(model="small", timeout_seconds=0.05), end=True))
    await until(lambda: served.value("queue_items", op="infer") == 1)
    deadline = min(each.deadline for each in served.engine.sequences if each.deadline is not None)
    await until(lambda: time.monotonic() > deadline)
    gate.open()
    failure = await sessions.error(3)
    assert (failure.code, failure.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    await held
    await sessions.send(entry(1, frames(5), end=True))
    assert (await sessions.until_ended(1))[1].ended.steps == 5
    await until(lambda: served.value("steps_total") == 9)
    assert served.value("rejected_total") == 0
    assert_nothing_waits(served)


@pytest.mark.parametrize("timeout", [-5.0, 0.0, 1e-6])
async def test_a_deadline_in_the_past_or_in_a_microsecond_costs_nothing(served, channel, timeout):
    cost(served, **CHEAP)
    gate, held = await hold(served, channel)  # gRPC sends whole milliseconds, within which an idle device may be done
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, frames(3), timeout=timeout)
    assert caught.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    await asyncio.sleep(0.05)
    gate.open()
    await held
    await assert_serves(served, channel)
    await until(lambda: served.value("steps_total") >= 4 + 13)
    assert served.value("steps_total") == 4 + 13
    assert_nothing_waits(served)


@pytest.mark.parametrize("timeout", [5e-324, 1e-6])
async def test_a_session_of_a_microsecond_costs_nothing_either(served, channel, timeout):
    sessions = Sessions(channel)
    opening = pb.OpenSession(model="small", timeout_seconds=timeout)
    await sessions.send(entry(1, frames(3), open=opening, end=True), entry(2, frames(3), open=opening))
    for number in (1, 2):
        assert (await sessions.error(number)).code in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
    await assert_serves(served, channel)
    assert served.value("active_streams") == 0
    assert_nothing_waits(served)


async def test_a_deadline_in_a_year_or_beyond_all_clocks_is_as_good_as_none(served, channel):
    year = 365 * 86_400.0
    reply = await call(channel, frames(3), timeout=year)
    assert list(reply.lengths) == [3]
    sessions = Sessions(channel)
    for number, timeout in enumerate((year, 1e300)):
        opening = pb.OpenSession(model="small", timeout_seconds=timeout)
        await sessions.send(entry(number, frames(3), open=opening, end=True))
        assert (await sessions.until_ended(number))[1].ended.steps == 3
    assert_nothing_waits(served)


async def test_a_burst_into_an_idle_server_is_answered_or_refused_and_none_is_lost(serve):
    async with serve(max_queue_items=500) as served, open_channel(served.address) as channel:
        request = infer_request("small", frames(4))
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        calls = [stub.Infer(request, timeout=60) for _ in range(2000)]
        codes = [await one.code() for one in calls]
        assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        answered = codes.count(grpc.StatusCode.OK)
        assert answered >= 400
        await until(lambda: served.value("steps_total") == 4 * answered)
        assert served.value("rejected_total") == 2000 - answered
        assert 0 < served.value("admission_actual_seconds_count") <= answered  # one of each slice
        assert served.value("wasted_steps_total") == 0
        assert_nothing_waits(served)
        assert served.engine.alive
        await assert_serves(served, channel)
