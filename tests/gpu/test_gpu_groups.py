"""Stream groups on a GPU: each stream gets what it gets alone, beside others, whichever way the slices went."""

import time

import numpy as np
import pytest
from helpers.engine_helpers import Collected, alone, feed, make_frames, running_engine
from helpers.plain_group import PlainGroup
from helpers.recorded_graphs import always
from helpers.specs import CELLS, make_spec
from seqloom_server.engine.core.sequence import Chunk, Op, OutputSpec
from seqloom_server.engine.core.stream_group import GroupWork, StreamGroup
from seqloom_server.nn.cuda_graphs.buckets import Grid
from seqloom_server.nn.cuda_graphs.graph_layers import GraphLayers
from seqloom_server.nn.cuda_graphs.masked_layers import takes

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
# streams, None for all, and steps of each call
CALLS = [(None, 1), ([3, 0, 8], 6), (None, 13), ([5], 4), (None, 0), (None, 2)]


@pytest.mark.parametrize("way", ["graphs", "cuDNN", "measured"])
@pytest.mark.parametrize("more", [{}, {"conv_channels": 3, "conv_width": 4}], ids=["plain", "conv"])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
async def test_each_stream_of_a_group_gets_what_it_gets_alone(tmp_path, cell, activation, more, way):
    spec = make_spec(cell, activation, layers=2, dtype="float32", sizes=(8, 16, 10), **more)
    async with running_engine(tmp_path, spec, device="cuda", poison_slots=True, max_batch_steps=60) as engine:
        weights = engine.registry.current("m0")
        if way == "graphs" and takes(spec):
            weights.rectangles = always(GraphLayers(weights.network, max_padding=1.0, grid=Grid((1, 4, 16), (1, 4, 8))))
        elif way == "cuDNN":
            weights.rectangles = None
        groups, singles = [], []
        for seed, n in enumerate((9, 20)):
            draw = np.random.default_rng(seed)
            shapes = spec.state_shapes().values()
            initial = tuple(0.5 * draw.standard_normal((rows, n, width)).astype("f4") for rows, width in shapes)
            sink, plain = Collected(), PlainGroup(weights.network, n, initial)
            sequence = engine.open(weights, Op.STREAM, OutputSpec(), sink, group=StreamGroup(n, initial))
            chunks, expected = [], []
            for streams, k in CALLS:
                which = np.arange(n) if streams is None else np.array(streams)
                frames = draw.standard_normal((len(which), k, 8)).astype("f4")
                plain.reset(which[:1])
                expected.append(plain.run(which, frames))
                work = GroupWork(None if streams is None else which, reset=which[:1])
                chunks.append(Chunk(frames.transpose(1, 0, 2), time.monotonic(), work=work))
            chunks.append(Chunk(np.empty((0, n, 8), "f4"), time.monotonic(), silent=True, last=True, work=GroupWork()))
            assert engine.feed([(sequence, chunks)]) == []
            groups.append((sink, plain, expected))
        for number, frames in enumerate(make_frames(spec, 1, 43, 120)):
            sink = Collected()
            op = Op.INFER if number % 2 else Op.STREAM
            feed(engine, engine.open(weights, op, OutputSpec(), sink), frames, end=True)
            singles.append((sink, frames))
        for sink, plain, expected in groups:
            await sink.wait()
            pieces = iter(piece for piece in sink.pieces if piece.steps)
            for outputs in expected:
                got = []
                while sum(rows.shape[1] for rows in got) < outputs.shape[1]:
                    piece = next(pieces)
                    got.append(piece.values.reshape(-1, piece.steps, 10))
                if got:
                    np.testing.assert_allclose(np.concatenate(got, 1), outputs, **CLOSE)
            for one, other in zip(sink.final_state, plain.states, strict=True):
                np.testing.assert_allclose(one, other, **CLOSE)
        for sink, frames in singles:
            await sink.wait()
            np.testing.assert_allclose(sink.values, alone(weights, frames)[0], **CLOSE)
        assert weights.slots.in_use == 0
