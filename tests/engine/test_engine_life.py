"""How requests and the engine itself end: each exactly once, with the right error, and nothing is left behind."""

import asyncio
import gc
import time
import weakref

import numpy as np
import pytest
import torch
from engine_kit import (
    Collected,
    Gate,
    alone,
    close_to,
    feed,
    make_frames,
    make_spec,
    metric,
    open_sequence,
    running_engine,
    until,
)
from seqloom_server.engine.request import Chunk, Op, OutputSpec
from seqloom_server.errors import Reason, ServerError

SPEC = make_spec()


def reason_of(sink):
    assert sink.endings == 1
    return sink.error.reason


async def test_sequences_that_come_while_the_device_is_busy_share_few_slices(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        weights = engine.registry.current("m0")
        gate = Gate(weights)
        lengths = np.random.default_rng(0).integers(1, 301, 65)
        first, *others = [(*open_sequence(engine, Op.INFER), frames) for frames in make_frames(SPEC, *lengths)]
        feed(engine, first[0], first[2], end=True)
        await gate.arrived()
        for sequence, _, frames in others:
            feed(engine, sequence, frames, end=True)
        gate.open()
        for _, sink, frames in (first, *others):
            await sink.wait()
            np.testing.assert_allclose(sink.values, alone(weights, frames)[0], **close_to(SPEC))
        widths = [sizes[0] for sizes in gate.batches[1:]]
        assert np.mean(widths) > 16
        labels = {"op": "infer", "model": "m0"}
        await until(lambda: metric(engine, "batch_sequences_count", **labels) == len(gate.batches))
        assert metric(engine, "batch_sequences_sum", **labels) == sum(sizes[0] for sizes in gate.batches)
        assert metric(engine, "steps_total", **labels) == lengths.sum()
        assert metric(engine, "queue_duration_seconds_count", **labels) == 65


async def test_a_long_recording_is_cut_so_that_live_frames_are_in_the_next_slice(tmp_path):
    spec = make_spec(sizes=(4, 32, 8), dtype="float32")
    async with running_engine(tmp_path, spec, max_slice_ms=1.0) as engine:
        weights = engine.registry.current("m0")
        gate = Gate(weights)
        long, long_sink = open_sequence(engine, Op.INFER)
        stream, stream_sink = open_sequence(engine)
        frames, live = make_frames(spec, 10_000, 60)
        feed(engine, long, frames, end=True)
        for start in range(0, 60, 10):
            await gate.arrived()  # a slice of the long one runs
            feed(engine, stream, live[start : start + 10])
            before = len(gate.batches)
            gate.let_pass()
            await gate.arrived()
            assert gate.batches[before][:10] == [2] * 10, "the next slice has the frames, all of them"
            gate.let_pass()
            await stream_sink.until(lambda sink, due=start + 10: sink.steps == due)
        assert not long_sink.endings
        gate.open()
        feed(engine, stream, end=True)
        await stream_sink.wait()
        await long_sink.wait()
        np.testing.assert_allclose(long_sink.values, alone(weights, frames)[0], rtol=1e-4, atol=1e-4)
        assert len(gate.batches) > 12


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
        assert reason_of(late_sink) is Reason.DEADLINE_EXCEEDED
        assert gate.batches == [[1] * 10]
        assert metric(engine, "cancelled_total", stage="deadline") == 1


async def test_a_deadline_passes_also_while_the_device_has_nothing_to_do(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        (frames,) = make_frames(SPEC, 10)
        halting, sink = open_sequence(engine, Op.INFER, deadline=time.monotonic() + 0.05)
        feed(engine, halting, frames)  # and its other frames never come
        await sink.until(lambda sink: sink.endings)
        assert reason_of(sink) is Reason.DEADLINE_EXCEEDED


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


async def test_a_slice_that_fails_ends_its_members_alone(tmp_path):
    async with running_engine(tmp_path, SPEC, make_spec("gru")) as engine:
        weights = engine.registry.current("m0")
        frames, more = make_frames(SPEC, 10, 10)
        kept = [open_sequence(engine, model=model) for model in ("m0", "m1")]
        for stream, sink in kept:
            feed(engine, stream, frames)
            await sink.until(lambda sink: sink.steps == 10)
        gate = Gate(weights)
        gate.break_with = RuntimeError("out of memory")
        broken = [open_sequence(engine, op) for op in (Op.STREAM, Op.INFER)]
        assert not engine.feed((sequence, [Chunk(frames, 0.0)]) for sequence, _ in broken)
        gate.open()
        for sequence, sink in broken:
            await sink.until(lambda sink: sink.endings)
            assert reason_of(sink) is Reason.INTERNAL
            assert "memory" not in sink.error.message, "the caller is not told of our insides"
            assert engine.feed([(sequence, [Chunk(frames, 0.0)])]) == [], "what comes after is dropped"
        gate.break_with = None
        for stream, sink in kept:
            feed(engine, stream, more, end=True)
            await sink.wait()
            expected, _ = alone(stream.weights, np.concatenate([frames, more]))
            np.testing.assert_allclose(sink.values, expected, **close_to(SPEC))
        assert engine.alive
        assert weights.slots.in_use == 0
        assert metric(engine, "active_streams", model="m0") == 0


@pytest.mark.parametrize("cause", ["a base exception", "failures in a row"])
async def test_when_the_device_thread_dies_everything_pending_fails_and_nothing_new_comes_in(tmp_path, cause):
    async with running_engine(tmp_path, SPEC) as engine:
        died = asyncio.Event()
        engine.on_death(died.set)
        gate = Gate(engine.registry.current("m0"))
        (frames,) = make_frames(SPEC, 10)
        waiting, waiting_sink = open_sequence(engine)
        _, silent_sink = open_sequence(engine)
        running, running_sink = open_sequence(engine)
        feed(engine, running, frames)
        await gate.arrived()
        feed(engine, waiting, frames)
        if cause == "a base exception":
            gate.break_with = SystemExit("the device is gone")
            gate.let_pass()
        else:
            gate.break_with = RuntimeError("the device is gone")
            gate.open()
            while engine.alive:  # each of these fails in a slice of its own
                try:
                    sequence, sink = open_sequence(engine, Op.INFER)
                except ServerError:
                    break
                feed(engine, sequence, frames, end=True)
                await sink.until(lambda sink: sink.endings)
        await died.wait()
        assert not engine.alive
        for sink in (waiting_sink, silent_sink, running_sink):
            await sink.until(lambda sink: sink.endings)
        assert reason_of(silent_sink) is Reason.ENGINE_DEAD
        if cause == "a base exception":
            assert reason_of(waiting_sink) is reason_of(running_sink) is Reason.ENGINE_DEAD
        with pytest.raises(ServerError) as raised:
            open_sequence(engine)
        assert raised.value.reason is Reason.ENGINE_DEAD
        assert engine.open_sessions == 0


async def test_broken_weights_kill_no_one_else(tmp_path):
    async with running_engine(tmp_path, SPEC, make_spec("lstm")) as engine:
        network = engine.registry.current("m0").network
        network._flat = [torch.zeros(1, 1) for _ in network._flat]
        (frames,) = make_frames(SPEC, 10)
        broken, broken_sink = open_sequence(engine, Op.INFER, "m0")
        good, good_sink = open_sequence(engine, Op.INFER, "m1")
        feed(engine, broken, frames, end=True)
        feed(engine, good, frames, end=True)
        await good_sink.wait()
        await broken_sink.until(lambda sink: sink.endings)
        assert reason_of(broken_sink) is Reason.INTERNAL


async def test_a_sink_that_fails_ends_its_own_sequence_only(tmp_path):
    class Clumsy(Collected):
        def deliver(self, sequence, piece):
            raise ValueError("clumsy")

    async with running_engine(tmp_path, SPEC) as engine:
        frames, _ = make_frames(SPEC, 10, 10)
        clumsy = Clumsy()
        bad = engine.open(engine.registry.current("m0"), Op.STREAM, OutputSpec(), clumsy)
        good, good_sink = open_sequence(engine)
        assert not engine.feed([(bad, [Chunk(frames, 0.0)]), (good, [Chunk(frames, 0.0, last=True)])])
        await good_sink.wait()
        assert reason_of(clumsy) is Reason.INTERNAL
        assert engine.open_sessions == 0


async def test_a_cancelled_sequence_hears_nothing_more_and_leaves_nothing(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        gate = Gate(engine.registry.current("m0"))
        (frames,) = make_frames(SPEC, 10)
        running, running_sink = open_sequence(engine)
        feed(engine, running, frames)
        await gate.arrived()
        queued, queued_sink = open_sequence(engine)
        feed(engine, queued, frames)
        assert metric(engine, "queue_items", op="stream") == 1
        engine.cancel([running, queued])
        engine.cancel([running, queued])
        assert metric(engine, "queue_items", op="stream") == 0
        gate.open()
        stream, sink = open_sequence(engine)
        feed(engine, stream, frames, end=True)
        await sink.wait()
        assert not running_sink.pieces
        assert not queued_sink.pieces
        assert running_sink.endings == queued_sink.endings == 0
        assert metric(engine, "cancelled_total", stage="running") == 1
        assert metric(engine, "cancelled_total", stage="queued") == 1
        assert metric(engine, "active_streams", model="m0") == 0


async def test_a_full_queue_refuses_at_once_and_what_was_let_in_ends_well(tmp_path):
    async with running_engine(tmp_path, SPEC, max_queue_steps=100) as engine:
        gate = Gate(engine.registry.current("m0"))
        (frames,) = make_frames(SPEC, 30)
        runs = [open_sequence(engine, Op.INFER) for _ in range(5)]
        feed(engine, runs[0][0], frames, end=True)
        await gate.arrived()
        feed(engine, runs[1][0], frames, end=True)
        feed(engine, runs[2][0], frames, end=True)
        refused = engine.feed((sequence, [Chunk(frames, 0.0, last=True)]) for sequence, _ in runs[3:])
        assert [sequence for sequence, _ in refused] == [sequence for sequence, _ in runs[3:]]
        for _, error in refused:
            assert error.reason is Reason.OVERLOADED
            assert error.retry_after > 0
        assert metric(engine, "rejected_total", reason="OVERLOADED") == 2
        gate.open()
        for _, sink in runs[:3]:
            assert (await sink.wait()).steps == 30


async def test_after_a_refused_chunk_no_later_one_of_the_same_call_slips_in(tmp_path):
    async with running_engine(tmp_path, SPEC, max_queue_steps=100) as engine:
        gate = Gate(engine.registry.current("m0"))
        busy, _ = open_sequence(engine)
        (frames,) = make_frames(SPEC, 90)
        feed(engine, busy, frames[:1])
        await gate.arrived()
        stream, sink = open_sequence(engine)
        items = [(stream, [Chunk(frames[:size], 0.0)]) for size in (20, 90, 10, 90)]
        refused = engine.feed(items)
        assert [sequence for sequence, _ in refused] == [stream]
        assert engine.open_sessions == 1
        assert metric(engine, "queue_items", op="stream") == 0
        engine.cancel([busy, busy])
        gate.open()
        last, last_sink = open_sequence(engine)
        feed(engine, last, frames, end=True)
        await last_sink.wait()
        assert not sink.pieces
        assert len(gate.batches) == 2


async def test_no_more_sessions_than_allowed_and_room_again_when_one_ends(tmp_path):
    async with running_engine(tmp_path, SPEC, max_sessions=2) as engine:
        (first, first_sink), _ = open_sequence(engine), open_sequence(engine)
        with pytest.raises(ServerError, match="2 sessions are open") as raised:
            open_sequence(engine)
        assert raised.value.reason is Reason.OVERLOADED
        assert raised.value.retry_after > 0
        feed(engine, first, end=True)
        await first_sink.wait()
        open_sequence(engine)


async def test_whole_sequences_that_are_opened_and_never_fed_are_bounded_and_end_when_idle(tmp_path):
    async with running_engine(tmp_path, SPEC, max_queue_items=4, idle_seconds=0.05) as engine:
        sinks = [open_sequence(engine, Op.INFER)[1] for _ in range(4)]
        with pytest.raises(ServerError, match="4 sequences are open"):
            open_sequence(engine, Op.INFER)
        for sink in sinks:
            await sink.until(lambda sink: sink.endings)
            assert reason_of(sink) is Reason.SESSION_IDLE
        open_sequence(engine, Op.INFER)


async def test_draining_lets_what_is_open_end_and_takes_nothing_new(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        gate = Gate(engine.registry.current("m0"))
        (frames,) = make_frames(SPEC, 10)
        stream, sink = open_sequence(engine)
        feed(engine, stream, frames[:5])
        await gate.arrived()
        draining = asyncio.create_task(engine.drain(60))
        await until(lambda: engine._draining)
        with pytest.raises(ServerError) as raised:
            open_sequence(engine)
        assert raised.value.reason is Reason.SHUTTING_DOWN
        gate.open()
        feed(engine, stream, frames[5:], end=True)
        await sink.wait()
        await asyncio.wait_for(draining, 60)
        np.testing.assert_allclose(sink.values, alone(stream.weights, frames)[0], **close_to(SPEC))


@pytest.mark.parametrize("how", ["drained", "closed"])
async def test_what_is_still_open_when_time_is_up_is_told(tmp_path, how):
    async with running_engine(tmp_path, SPEC) as engine:
        _, sink = open_sequence(engine)
        if how == "drained":
            await engine.drain(0.01)
        else:
            await asyncio.to_thread(engine.close)
        await sink.until(lambda sink: sink.endings)
        assert reason_of(sink) is Reason.SHUTTING_DOWN
        with pytest.raises(ServerError):
            open_sequence(engine)


async def test_draining_with_nothing_open_is_done_at_once(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        await asyncio.wait_for(engine.drain(3600), 60)


async def test_an_idle_device_thread_keeps_no_weights_and_no_outputs_alive(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        (frames,) = make_frames(SPEC, 10)
        stream, sink = open_sequence(engine)
        feed(engine, stream, frames, end=True)
        await sink.wait()
        labels = {"op": "stream", "model": "m0"}
        await until(lambda: metric(engine, "steps_total", **labels) == 10)  # the thread is done with the slice
        gone = [weakref.ref(stream.weights.network), weakref.ref(sink)]
        await engine.registry.unload("m0")
        del stream, sink

        def collected():
            gc.collect()
            return not any(reference() for reference in gone)

        await until(collected)


async def test_the_threads_that_are_asked_for_are_those_of_the_device_thread(tmp_path):
    async with running_engine(tmp_path, SPEC, threads=2) as engine:
        weights = engine.registry.current("m0")
        seen, advance = [], weights.network.advance

        def look(*arguments):
            seen.append(torch.get_num_threads())
            return advance(*arguments)

        weights.network.advance = look
        (frames,) = make_frames(SPEC, 10)
        sequence, sink = open_sequence(engine, Op.INFER)
        feed(engine, sequence, frames, end=True)
        await sink.wait()
        assert seen == [2]
