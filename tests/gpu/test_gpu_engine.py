"""The whole engine on a GPU: every caller gets what it gets alone, whichever way its slices went."""

import numpy as np
import pytest
import torch
from helpers.engine_helpers import alone, feed, make_frames, make_state, open_sequence, running_engine
from helpers.frames import cut
from helpers.real_server import metric, until
from helpers.recorded_graphs import always
from helpers.specs import CELLS, make_spec
from seqloom_server.engine.core.sequence import Op
from seqloom_server.nn.cuda_graphs.buckets import Grid
from seqloom_server.nn.cuda_graphs.graph_layers import GraphLayers
from seqloom_server.nn.cuda_graphs.masked_layers import takes

MORE = [{}, {"bidirectional": True}, {"conv_channels": 3, "conv_width": 4}]


@pytest.mark.parametrize("way", ["graphs", "cuDNN", "measured"])
@pytest.mark.parametrize("more", MORE, ids=["plain", "bidirectional", "conv"])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
async def test_each_gets_what_it_gets_alone(tmp_path, cell, activation, more, way):
    spec = make_spec(cell, activation, layers=2, dtype="float32", sizes=(8, 16, 10), **more)
    async with running_engine(tmp_path, spec, device="cuda", poison_slots=True) as engine:
        weights = engine.registry.current("m0")
        if way == "graphs" and takes(spec):
            grid = Grid((1, 4, 16), (1, 4, 8))
            weights.rectangles = always(GraphLayers(weights.network, max_padding=1.0, grid=grid))
        elif way == "cuDNN":
            weights.rectangles = None
        runs = []
        for number, frames in enumerate(make_frames(spec, 1, 300, 43, 43, 2, 120)):
            state = make_state(spec) if number % 2 else None
            op = Op.INFER if spec.bidirectional or number % 2 else Op.STREAM
            sequence, sink = open_sequence(engine, op, initial_state=state, snapshot_interval=0)
            feed(engine, sequence, *cut(frames, [20, 1, 7]), end=True)
            runs.append((frames, state, sink))
        for frames, state, sink in runs:
            await sink.wait()
            expected, final = alone(weights, frames, state)
            np.testing.assert_allclose(sink.values, expected, rtol=1e-4, atol=1e-5)
            for got, wanted in zip(sink.final_state, final, strict=True):
                np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


async def test_padding_stays_below_a_quarter_and_device_time_below_the_clocks(tmp_path):
    spec = make_spec("elman", dtype="float32", sizes=(16, 64, 10))
    async with running_engine(tmp_path, spec, device="cuda") as engine:
        sinks = []
        for frames in make_frames(spec, *([10] * 50), *range(20, 90)):
            sequence, sink = open_sequence(engine, Op.INFER)
            feed(engine, sequence, frames, end=True)
            sinks.append(sink)
        for sink in sinks:
            await sink.wait()
        labels = {"op": "infer", "model": "m0"}
        steps = 500 + sum(range(20, 90))
        await until(lambda: metric(engine, "steps_total", **labels) == steps)
        padded = metric(engine, "padded_steps_total", **labels)
        assert padded <= 0.25 * (steps + padded)
        assert metric(engine, "compute_duration_seconds_sum", **labels) > 0


async def test_running_out_of_memory_fails_its_own_slice_alone(tmp_path):
    spec = make_spec("elman", dtype="float32", sizes=(8, 16, 10))
    async with running_engine(tmp_path, spec, device="cuda") as engine:
        weights = engine.registry.current("m0")
        weights.rectangles = None
        advance = weights.network.advance
        weights.network.advance = lambda *_: torch.empty(1 << 50, device="cuda")
        sequence, sink = open_sequence(engine, Op.INFER)
        feed(engine, sequence, *make_frames(spec, 5), end=True)
        with pytest.raises(Exception, match="memory"):
            await sink.wait()
        weights.network.advance = advance
        sequence, sink = open_sequence(engine, Op.INFER)
        (frames,) = make_frames(spec, 5)
        feed(engine, sequence, frames, end=True)
        await sink.wait()
        np.testing.assert_allclose(sink.values, alone(weights, frames)[0], rtol=1e-4, atol=1e-5)
