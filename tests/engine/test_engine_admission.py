"""Admission in the running engine: refused at the door, dropped when hopeless, and told once what it took."""

import asyncio
import time

import pytest
from helpers.engine_helpers import feed, make_frames, open_sequence, running_engine
from helpers.gate import Gate, keep_cost
from helpers.real_server import metric, until
from helpers.specs import make_spec
from seqloom_server.engine.core.sequence import Chunk, Op
from seqloom_server.errors import Overload, Reason, ServerError

SPEC = make_spec()
CHEAP = {"per_slice": 1e-6, "per_step": 1e-7, "per_cell": 1e-7}


def backlog_of(engine):
    return engine._scheduler._admission.backlog


def assert_nothing_waits(engine):
    backlog = backlog_of(engine)
    assert (backlog.seconds, backlog.sequences, backlog._lanes) == (0, 0, {})
    assert engine._scheduler.next_deadline() is None
    assert not engine._scheduler._bounds._callers
    assert engine.sequences._bounds[Op.INFER].used == engine.sequences._bounds[Op.STREAM].used == 0


def open_until_refused(engine, **more):
    """Opens sessions until one is refused; returns them and the refusal."""
    opened = []
    try:
        while len(opened) < 1000:
            opened.append(open_sequence(engine, **more)[0])
    except ServerError as error:
        return opened, error
    raise AssertionError("no end of them")


async def hold(engine, steps=10):
    """Returns the gate that holds the device with a slice of one sequence, and that one's sink."""
    weights = engine.registry.current("m0")
    gate = Gate(weights)
    sequence, sink = open_sequence(engine, Op.INFER)
    feed(engine, sequence, *make_frames(SPEC, steps), end=True)
    await gate.arrived()
    return gate, sink


async def test_what_would_be_late_is_refused_with_when_to_come_again_and_nothing_of_it_is_run(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        gate, first = await hold(engine)
        weights = engine.registry.current("m0")
        keep_cost(weights, per_slice=1.0, per_step=1.0, per_cell=1.0)
        (frames,) = make_frames(SPEC, 7)
        late, sink = open_sequence(engine, Op.INFER, deadline=time.monotonic() + 5)
        ((refused, error),) = engine.feed([(late, [Chunk(frames, 0.0, last=True)])])
        assert refused is late
        assert (error.reason, error.cause) == (Reason.OVERLOADED, Overload.TOO_LATE)
        assert error.retry_after > 0
        with pytest.raises(ServerError) as raised:
            open_sequence(engine, Op.INFER, deadline=time.monotonic() + 5, total_steps=7)
        assert raised.value.cause is Overload.TOO_LATE
        assert metric(engine, "rejected_total", reason="too_late") == metric(engine, "rejected_total") == 2
        gate.open()
        await first.wait()
        await until(lambda: metric(engine, "steps_total") == 10)
        assert not sink.endings, "it is told by what feed() returned, and by nothing else"
        assert_nothing_waits(engine)
        assert gate.batches == [[1] * 10]
        assert metric(engine, "wasted_steps_total") == 0


async def test_while_others_are_refused_one_whose_frames_are_not_read_yet_is_refused_or_served(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        keep_cost(engine.registry.current("m0"), **CHEAP)
        gate, first = await hold(engine)
        (frames,) = make_frames(SPEC, 7)
        keep_cost(engine.registry.current("m0"), per_slice=1.0, per_step=1.0, per_cell=1.0)
        assert not engine.refuses(time.monotonic())
        for _ in range(2):  # the second although nothing of it was fed
            with pytest.raises(ServerError, match="would have ended") as refused:
                open_sequence(engine, Op.INFER, deadline=time.monotonic() + 5, likely_steps=7)
            assert refused.value.cause is Overload.TOO_LATE
            assert engine.refuses(time.monotonic())
        keep_cost(engine.registry.current("m0"), **CHEAP)
        sequence, sink = open_sequence(engine, Op.INFER, deadline=time.monotonic() + 3600, likely_steps=7)
        feed(engine, sequence, frames, end=True)
        gate.open()
        await first.wait()
        assert (await sink.wait()).steps == 7
        assert_nothing_waits(engine)


async def test_what_cannot_be_in_time_any_more_is_dropped_before_it_costs_a_slice(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        weights = engine.registry.current("m0")
        keep_cost(weights, **CHEAP)
        gate, first = await hold(engine)
        (frames,) = make_frames(SPEC, 7)
        doomed, sink = open_sequence(engine, Op.INFER, deadline=time.monotonic() + 3600)
        feed(engine, doomed, frames, end=True)
        keep_cost(weights, per_slice=1e4, per_step=1e4, per_cell=1e4)
        gate.open()
        await first.wait()
        await sink.until(lambda sink: sink.endings)
        assert sink.reason is Reason.DEADLINE_EXCEEDED
        assert gate.batches == [[1] * 10]
        assert metric(engine, "cancelled_total", stage="deadline") == metric(engine, "cancelled_total") == 1
        assert metric(engine, "rejected_total") == 0
        assert_nothing_waits(engine)


async def test_what_waited_for_too_long_without_a_deadline_is_told_to_come_again(tmp_path):
    async with running_engine(tmp_path, SPEC, max_queue_seconds=0.05) as engine:
        keep_cost(engine.registry.current("m0"), **CHEAP)
        gate, first = await hold(engine)
        (frames,) = make_frames(SPEC, 7)
        waiting, sink = open_sequence(engine, Op.INFER)
        feed(engine, waiting, frames, end=True)
        await until(lambda: time.monotonic() > waiting.admitted + 0.05)
        gate.open()
        await first.wait()
        await sink.until(lambda sink: sink.endings)
        assert (sink.reason, sink.error.cause) == (Reason.OVERLOADED, Overload.TOO_LATE)
        assert sink.error.retry_after > 0
        assert gate.batches == [[1] * 10]
        assert metric(engine, "rejected_total", reason="too_late") == metric(engine, "rejected_total") == 1
        assert_nothing_waits(engine)


async def test_one_that_said_its_length_and_sends_nothing_is_ended_at_its_deadline_by_an_idle_device(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        _, sink = open_sequence(engine, Op.INFER, deadline=time.monotonic() + 0.2, total_steps=7)
        assert backlog_of(engine).reserved > 0
        await sink.until(lambda sink: sink.endings)
        assert sink.reason is Reason.DEADLINE_EXCEEDED
        assert metric(engine, "cancelled_total", stage="deadline") == 1
        assert_nothing_waits(engine)


async def test_what_was_begun_and_is_cancelled_is_counted_as_wasted(tmp_path):
    async with running_engine(tmp_path, SPEC, max_batch_steps=10) as engine:
        gate, first = await hold(engine, steps=25)
        gate.let_pass()
        await gate.arrived()  # ten of them have run, and ten more are under way
        (sequence,) = engine.sequences
        engine.cancel([sequence])
        assert metric(engine, "wasted_steps_total", op="infer", model="m0") == 20
        gate.open()
        await until(lambda: metric(engine, "steps_total") == 20)
        queued, _ = open_sequence(engine, Op.INFER)
        engine.cancel([queued])
        assert metric(engine, "wasted_steps_total") == 20
        assert not first.endings
        assert_nothing_waits(engine)


async def test_frames_of_a_session_that_is_cancelled_on_the_device_are_wasted_once(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        gate = Gate(engine.registry.current("m0"))
        stream, _ = open_sequence(engine)
        feed(engine, stream, *make_frames(SPEC, 9))
        await gate.arrived()
        engine.cancel([stream])
        gate.open()
        await until(lambda: metric(engine, "wasted_steps_total", op="stream", model="m0") == 9)
        assert metric(engine, "wasted_steps_total") == 9


async def test_what_was_predicted_and_what_it_took_are_told_of_one_answer_of_each_slice(tmp_path):
    async with running_engine(tmp_path, SPEC, max_batch_steps=10) as engine:
        (frames,) = make_frames(SPEC, 25)
        runs = [open_sequence(engine, Op.INFER) for _ in range(5)]
        for sequence, _ in runs:
            feed(engine, sequence, frames, end=True)
        await asyncio.gather(*(sink.wait() for _, sink in runs))
        said, sink = open_sequence(engine, Op.INFER, total_steps=25)
        feed(engine, said, frames[:5])
        feed(engine, said, frames[5:], end=True)
        await sink.wait()
        stream, sink = open_sequence(engine)
        feed(engine, stream, frames, end=True)
        await sink.wait()
        gone, _ = open_sequence(engine, Op.INFER)
        feed(engine, gone, frames[:5])
        engine.cancel([gone])
        for name in ("admission_predicted_seconds", "admission_actual_seconds"):
            count = metric(engine, f"{name}_count", model="m0")
            assert 2 <= count == metric(engine, f"{name}_count") <= 6
            assert metric(engine, f"{name}_sum") > 0
        assert_nothing_waits(engine)


async def test_a_caller_that_opens_until_it_is_refused_leaves_a_tenth_for_another(tmp_path):
    async with running_engine(tmp_path, SPEC, max_sessions=100) as engine:
        opened = {}
        for caller, most in (("a", 90), ("b", 9), ("c", 1)):
            opened[caller], error = open_until_refused(engine, caller=caller)
            assert (error.reason, error.cause) == (Reason.OVERLOADED, Overload.SESSIONS)
            assert error.retry_after > 0
            assert len(opened[caller]) == most
        assert metric(engine, "rejected_total", reason="sessions") == 3
        engine.cancel(opened["a"])
        assert engine.open_sessions == 10
        again, _ = open_until_refused(engine, caller="a")
        assert len(again) == 81, "nine tenths of what the others left"


@pytest.mark.parametrize("rate", [1e-10, 50.0])
async def test_sessions_with_a_rate_are_refused_beyond_the_load_and_room_again_when_they_end(tmp_path, rate):
    async with running_engine(tmp_path, SPEC, max_live_load=0.5) as engine:
        keep_cost(engine.registry.current("m0"), per_slice=1e-9, per_step=1e-9, per_cell=0.1 / rate)
        sessions, error = open_until_refused(engine, rate=rate)
        assert len(sessions) in (4, 5)
        assert (error.reason, error.cause) == (Reason.OVERLOADED, Overload.LIVE_LOAD)
        assert error.retry_after > 0
        open_sequence(engine)  # one without a rate takes what is left
        engine.cancel(sessions)
        assert engine.sequences.load.load() == 0
        open_sequence(engine, rate=rate)
        assert metric(engine, "rejected_total", reason="live_load") == 1
