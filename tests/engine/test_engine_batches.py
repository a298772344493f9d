"""What shares a slice in the running engine: many at once, and live frames with the next piece of a long recording."""

import numpy as np
import torch
from helpers.engine_helpers import alone, close_to, feed, make_frames, open_sequence, running_engine
from helpers.gate import Gate, keep_cost
from helpers.real_server import metric, until
from helpers.specs import make_spec
from helpers.tolerances import near
from seqloom_server.engine.core.sequence import Op

SPEC = make_spec()


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
        keep_cost(weights, per_slice=1e-5, per_step=1e-5, per_cell=1e-6)
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
        np.testing.assert_allclose(long_sink.values, alone(weights, frames)[0], **near(rtol=1e-4, atol=1e-4))
        assert len(gate.batches) > 12


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
