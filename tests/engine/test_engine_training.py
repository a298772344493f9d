"""What others' users learned the hard way (DESIGN 9), each a test that fails against an engine with that fault."""

import asyncio

import numpy as np
import pytest
from helpers.engine_helpers import (
    alone,
    assert_states_close,
    close_to,
    feed,
    make_frames,
    make_state,
    open_sequence,
    running_engine,
)
from helpers.gate import Gate
from helpers.real_server import metric, until
from helpers.specs import make_spec
from seqloom_server.engine.core.sequence import Chunk, Op
from seqloom_server.errors import Reason

SPEC = make_spec("gru")


@pytest.mark.parametrize("op", [Op.STREAM, Op.INFER])
async def test_cancelling_one_member_of_a_batch_in_flight_leaves_the_others_right(tmp_path, op):
    async with running_engine(tmp_path, SPEC, poison_slots=True) as engine:
        weights = engine.registry.current("m0")
        gate = Gate(weights)
        runs = [(*open_sequence(engine, op), frames) for frames in make_frames(SPEC, 12, 30, 7, 7)]
        assert not engine.feed((sequence, [Chunk(frames[:5], 0.0)]) for sequence, _, frames in runs)
        await gate.arrived()
        assert gate.batches[-1][0] == 4, "all of them are in flight"
        (gone, gone_sink, _), *others = runs
        engine.cancel([gone])
        for sequence, _, frames in others:
            feed(engine, sequence, frames[5:], end=True)
        gate.open()
        for _, sink, frames in others:
            await sink.wait()
            expected, final = alone(weights, frames)
            np.testing.assert_allclose(sink.values, expected, **close_to(SPEC))
            assert_states_close(sink.final_state, final, SPEC)
        assert not gone_sink.pieces
        assert not gone_sink.endings
        assert metric(engine, "cancelled_total", stage="running") == 1
        await until(lambda: weights.slots.in_use == 0)


async def test_who_gets_the_slot_of_a_cancelled_stream_gets_nothing_of_its_state(tmp_path):
    async with running_engine(tmp_path, SPEC, poison_slots=True) as engine:
        weights = engine.registry.current("m0")
        first, second = make_frames(SPEC, 20, 20)
        gate = Gate(weights)
        gone, _ = open_sequence(engine)
        feed(engine, gone, first)
        await gate.arrived()
        index = gone.slot.index
        engine.cancel([gone])  # while it is in flight
        stream, sink = open_sequence(engine)
        feed(engine, stream, second[:9])
        gate.open()
        await sink.until(lambda sink: sink.steps == 9)
        assert stream.slot.index == index, "it is the same slot"
        feed(engine, stream, second[9:], end=True)
        await sink.wait()
        expected, final = alone(weights, second)
        np.testing.assert_allclose(sink.values, expected, **close_to(SPEC))
        assert_states_close(sink.final_state, final, SPEC)


async def test_streams_that_come_and_go_never_share_a_slot(tmp_path):
    draw = np.random.default_rng(0)
    async with running_engine(tmp_path, SPEC, poison_slots=True) as engine:
        weights = engine.registry.current("m0")

        async def visit(number):
            (frames,) = make_frames(SPEC, 12, seed=number)
            stream, sink = open_sequence(engine, initial_state=make_state(SPEC, number) if number % 3 else None)
            for end in (4, 8, 12):
                feed(engine, stream, frames[end - 4 : end], end=end == 12)
                if number % 2 and draw.random() < 0.4:
                    await asyncio.sleep(0)
                    engine.cancel([stream])
                    return 0
                await sink.until(lambda sink, end=end: sink.steps >= end)
            await sink.wait()
            state = make_state(SPEC, number) if number % 3 else None
            np.testing.assert_allclose(sink.values, alone(weights, frames, state)[0], **close_to(SPEC))
            return 1

        ended = 0
        for round_ in range(20):
            ended += sum(await asyncio.gather(*(visit(20 * round_ + number) for number in range(20))))
        assert 200 <= ended < 400, "some were cancelled"
        await until(lambda: weights.slots.in_use == 0)
        assert weights.slots.capacity <= 2 + 40
        assert engine.open_sessions == 0
        assert metric(engine, "active_streams", model="m0") == 0


async def test_the_idle_timer_does_not_run_while_frames_are_queued(tmp_path):
    async with running_engine(tmp_path, SPEC, idle_seconds=0.05) as engine:
        gate = Gate(engine.registry.current("m0"))
        running, running_sink = open_sequence(engine)
        (frames,) = make_frames(SPEC, 10)
        feed(engine, running, frames)
        await gate.arrived()
        queued, queued_sink = open_sequence(engine)
        feed(engine, queued, frames)
        for _ in range(3):  # by the third one the others' time would be up long since
            _, idle_sink = open_sequence(engine)
            await idle_sink.until(lambda sink: sink.endings)
            assert idle_sink.error.reason is Reason.SESSION_IDLE
        assert not running_sink.endings, "in flight"
        assert not queued_sink.endings, "queued"
        feed(engine, running, end=True)
        feed(engine, queued, end=True)
        gate.open()
        await running_sink.wait()
        await queued_sink.wait()
        assert running_sink.steps == queued_sink.steps == 10


@pytest.mark.parametrize("end", ["with the last frames", "by itself"])
@pytest.mark.parametrize("op", [Op.STREAM, Op.INFER])
async def test_what_is_due_is_delivered_before_the_end(tmp_path, op, end):
    (frames,) = make_frames(SPEC, 50)
    async with running_engine(tmp_path, SPEC, max_batch_steps=8) as engine:
        gate = Gate(engine.registry.current("m0"))
        sequence, sink = open_sequence(engine, op)
        feed(engine, sequence, frames[:20])
        await gate.arrived()
        feed(engine, sequence, frames[20:], end=end == "with the last frames")
        if end == "by itself":
            feed(engine, sequence, end=True)  # nothing has come back yet
        gate.open()
        await sink.wait()
        assert sink.steps == 50
        assert [piece.final_state is not None for piece in sink.pieces] == [False] * (len(sink.pieces) - 1) + [True]
        np.testing.assert_allclose(sink.values, alone(engine.registry.current("m0"), frames)[0], **close_to(SPEC))


async def test_padding_does_not_leak_into_results_and_is_not_computed_on_the_cpu(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        weights = engine.registry.current("m0")
        gate = Gate(weights)
        lengths = [1, 2, 3, 5, 8, 13, 21, 34]
        runs = [(*open_sequence(engine, Op.INFER), frames) for frames in make_frames(SPEC, *lengths)]
        assert not engine.feed((sequence, [Chunk(frames, 0.0, last=True)]) for sequence, _, frames in runs)
        gate.open()
        for _, sink, frames in runs:
            await sink.wait()
            expected, final = alone(weights, frames)
            np.testing.assert_allclose(sink.values, expected, **close_to(SPEC))
            assert_states_close(sink.final_state, final, SPEC)
        assert max(len(sizes) for sizes in gate.batches) > 1
        assert sum(sum(sizes) for sizes in gate.batches) == sum(lengths), "rows that the network saw"
        labels = {"op": "infer", "model": "m0"}
        await until(lambda: metric(engine, "steps_total", **labels) == sum(lengths))
        assert metric(engine, "padded_steps_total", **labels) == 0


@pytest.mark.parametrize("op", [Op.STREAM, Op.INFER])
async def test_nothing_is_delivered_after_a_cancel_that_crosses_the_last_outputs(tmp_path, op):
    async with running_engine(tmp_path, SPEC) as engine:
        sequence, sink = open_sequence(engine, op)
        feed(engine, sequence, *make_frames(SPEC, 5), end=True)
        while not sequence.over:  # without a turn of the loop, on which its outcome waits
            pass
        engine.cancel([sequence])
        for _ in range(20):
            await asyncio.sleep(0)
        assert not sink.pieces
        assert not sink.endings
