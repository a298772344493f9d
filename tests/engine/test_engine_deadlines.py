"""Deadlines in the running engine: told in time, paid for with no device time, and never fatal."""

import time

import pytest
from helpers.engine_helpers import feed, make_frames, open_sequence, running_engine
from helpers.gate import Gate
from helpers.real_server import metric
from helpers.specs import make_spec
from seqloom_server.engine.core.sequence import Op
from seqloom_server.errors import Reason

SPEC = make_spec()


async def test_a_deadline_that_passes_in_the_queue_costs_no_device_time(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        gate = Gate(engine.registry.current("m0"))
        (frames,) = make_frames(SPEC, 10)
        first, first_sink = open_sequence(engine, Op.INFER)
        feed(engine, first, frames, end=True)
        await gate.arrived()
        late, late_sink = open_sequence(engine, Op.INFER, deadline=time.monotonic())
        feed(engine, late, frames, end=True)
        gate.open()
        await first_sink.wait()
        await late_sink.until(lambda sink: sink.endings)
        assert late_sink.reason is Reason.DEADLINE_EXCEEDED
        assert gate.batches == [[1] * 10]
        assert metric(engine, "cancelled_total", stage="deadline") == 1


async def test_a_deadline_passes_also_while_the_device_has_nothing_to_do(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        (frames,) = make_frames(SPEC, 10)
        halting, sink = open_sequence(engine, Op.INFER, deadline=time.monotonic() + 0.05)
        feed(engine, halting, frames)  # and its other frames never come
        await sink.until(lambda sink: sink.endings)
        assert sink.reason is Reason.DEADLINE_EXCEEDED


@pytest.mark.parametrize("deadline", [1e300, float("inf")])
async def test_a_deadline_beyond_all_clocks_does_no_harm(tmp_path, deadline):
    async with running_engine(tmp_path, SPEC) as engine:
        (frames,) = make_frames(SPEC, 10)
        halting, sink = open_sequence(engine, Op.INFER, deadline=deadline)
        feed(engine, halting, frames[:5])
        await sink.until(lambda sink: sink.steps == 5)
        feed(engine, halting, frames[5:], end=True)
        await sink.wait()
        assert engine.alive
