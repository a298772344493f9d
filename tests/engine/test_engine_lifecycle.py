"""How requests and the engine itself end: each exactly once, with the right error, and nothing is left behind."""

import asyncio
import gc
import weakref

import numpy as np
import pytest
import torch
from helpers.engine_helpers import Collected, alone, close_to, feed, make_frames, open_sequence, running_engine
from helpers.gate import Gate
from helpers.real_server import metric, until
from helpers.specs import make_spec
from seqloom_server.engine.core.sequence import Chunk, Op, OutputSpec
from seqloom_server.errors import Reason, ServerError

SPEC = make_spec()


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
            assert sink.reason is Reason.INTERNAL
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
        assert silent_sink.reason is Reason.ENGINE_DEAD
        if cause == "a base exception":
            assert waiting_sink.reason is running_sink.reason is Reason.ENGINE_DEAD
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
        assert broken_sink.reason is Reason.INTERNAL


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
        assert clumsy.reason is Reason.INTERNAL
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
        assert sink.reason is Reason.SHUTTING_DOWN
        with pytest.raises(ServerError):
            open_sequence(engine)


async def test_draining_with_nothing_open_is_done_at_once(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        await asyncio.wait_for(engine.drain(3600), 60)
        with pytest.raises(ServerError):
            open_sequence(engine)


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
