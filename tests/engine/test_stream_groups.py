"""Groups of streams in the whole engine: each stream gets what it gets alone, whoever shares its slices."""

import asyncio
import tempfile
import time

import numpy as np
from helpers.engine_helpers import Collected, alone, assert_states_close, close_to, feed, make_frames, running_engine
from helpers.plain_group import PlainGroup
from helpers.specs import CELLS, make_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.engine.core.sequence import Chunk, Op, OutputSpec
from seqloom_server.engine.core.stream_group import GroupWork, StreamGroup


@st.composite
def calls(draw, n):
    """One call of a group: who runs how many frames, whose states are replaced or zeroed, and who asks for them."""
    some = st.one_of(st.none(), st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True))
    return {
        "streams": draw(some),
        "steps": draw(st.integers(0, 9)),
        "set": draw(st.one_of(st.just(0), some)),  # 0 for none
        "reset": draw(st.one_of(st.just(0), some)),
        "get": draw(st.one_of(st.just(0), some)),
    }


@st.composite
def crowds(draw):
    """A spec, groups with their calls, and single sequences beside them."""
    cell, activation = draw(st.sampled_from(CELLS))
    spec = make_spec(
        cell,
        activation,
        layers=draw(st.integers(1, 2)),
        dtype=draw(st.sampled_from(["float32", "float64"])),
        sizes=(draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 5))),
        **draw(st.sampled_from([{}, {"conv_channels": 3, "conv_width": 3}])),
    )
    groups = []
    for _ in range(draw(st.integers(1, 3))):
        n = draw(st.integers(1, 40))
        groups.append((n, draw(st.booleans()), draw(st.lists(calls(n), min_size=1, max_size=6))))
    most = draw(st.sampled_from([150, 150, 20, 7]))  # rows of a slice
    singles = draw(st.lists(st.tuples(st.sampled_from([Op.STREAM, Op.INFER]), st.integers(1, 60)), max_size=4))
    return spec, groups, singles, most


def states_of(spec, count, draw):
    shapes = spec.state_shapes().values()
    return tuple(0.5 * draw.standard_normal((rows, count, width)).astype(spec.dtype) for rows, width in shapes)


def indices(streams, n):
    return np.arange(n) if streams is None else np.array(streams)


def as_index(streams):
    return None if streams is None else np.array(streams, np.int64)


def chunks_of(spec, n, call, draw):
    """Returns what a call feeds, and its frames [w, k, D] and states."""
    width = len(indices(call["streams"], n))
    frames = draw.standard_normal((width, call["steps"], spec.input_size)).astype(spec.dtype)
    given_states = None if call["set"] == 0 else states_of(spec, len(indices(call["set"], n)), draw)
    now = time.monotonic()
    work = GroupWork(
        as_index(call["streams"]),
        set=None if given_states is None else (as_index(call["set"]), given_states),
        reset=None if call["reset"] == 0 else indices(call["reset"], n),
    )
    chunks = [Chunk(frames.transpose(1, 0, 2), now, work=work)]
    if call["get"] != 0:
        empty = np.empty((0, len(indices(call["get"], n)), spec.input_size))
        chunks.append(Chunk(empty, now, silent=True, work=GroupWork(as_index(call["get"]), asks=True)))
    return chunks, frames, given_states


def split(pieces, widths):
    """Joins the pieces of a group into the outputs [w, k, O] of each of its runs of steps: (w, k) each."""
    outputs, stream = [], 0
    waiting = [(np.zeros(width, int), [[] for _ in range(width)], steps) for width, steps in widths]
    for piece in pieces:
        if piece.values is None:
            continue
        rows = piece.values.reshape(piece.streams, piece.steps, piece.values.shape[-1])
        while rows.shape[1]:
            come, parts, steps = waiting[0]
            begin, end = stream, stream + len(rows)  # those of a call that did not fit run some after others
            missing = steps - come[begin]
            for one, row in zip(parts[begin:end], rows[:, :missing], strict=True):
                one.append(row)
            come[begin:end] += rows[:, :missing].shape[1]
            rows = rows[:, missing:]
            if come[begin] == steps:
                stream = end
            if stream == len(come):
                outputs.append(np.stack([np.concatenate(one) for one in parts]))
                waiting, stream = waiting[1:], 0
    assert not waiting
    return outputs


@settings(max_examples=80, deadline=None)
@given(crowds())
def test_each_stream_of_a_group_gets_what_it_gets_alone(crowd):
    spec, groups, singles, most = crowd

    async def main(root):
        async with running_engine(root, spec, max_batch_steps=most, poison_slots=True) as engine:
            weights = engine.registry.current("m0")
            running = []
            for number, (n, begins, made) in enumerate(groups):
                draw = np.random.default_rng(number)
                initial = states_of(spec, n, draw) if begins else None
                sink = Collected()
                group = StreamGroup(n, initial)
                sequence = engine.open(weights, Op.STREAM, OutputSpec(), sink, group=group)
                plain = PlainGroup(weights.network, n, initial)
                wanted, asked, widths = [], [], []
                for call in made:
                    chunks, frames, given_states = chunks_of(spec, n, call, draw)
                    if given_states is not None:
                        plain.set(indices(call["set"], n), given_states)
                    if call["reset"] != 0:
                        plain.reset(indices(call["reset"], n))
                    outputs = plain.run(indices(call["streams"], n), frames)
                    if call["steps"]:
                        wanted.append(outputs)
                        widths.append(outputs.shape[:2])
                    if call["get"] != 0:
                        asked.append(plain.get(indices(call["get"], n)))
                    assert engine.feed([(sequence, chunks)]) == []
                    if call["steps"] % 2:
                        await asyncio.sleep(0)
                end = Chunk(np.empty((0, n, spec.input_size)), 0.0, silent=True, last=True, work=GroupWork())
                assert engine.feed([(sequence, [end])]) == []
                running.append((sink, plain, wanted, asked, widths))
            alongside = []
            for number, (op, length) in enumerate(singles):
                (frames,) = make_frames(spec, length, seed=100 + number)
                sink = Collected()
                feed(engine, engine.open(weights, op, OutputSpec(), sink), frames, end=True)
                alongside.append((sink, frames))
            for sink, plain, wanted, asked, widths in running:
                await sink.wait()
                for got, outputs in zip(split(sink.pieces, widths), wanted, strict=True):
                    np.testing.assert_allclose(got, outputs, **close_to(spec))
                states = [piece.states for piece in sink.pieces if piece.states is not None]
                for got, expected in zip(states, asked, strict=True):
                    assert_states_close(got, expected, spec)
                assert_states_close(sink.final_state, plain.states, spec)
            for sink, frames in alongside:
                logits, final = alone(weights, frames)
                await sink.wait()
                np.testing.assert_allclose(sink.values, logits, **close_to(spec))
                assert_states_close(sink.final_state, final, spec)
            assert weights.slots.in_use == 0
            assert engine._scheduler.live_sessions == 0
            assert (engine._scheduler.waiting_steps, engine._scheduler.waiting_bytes) == (0, 0)

    with tempfile.TemporaryDirectory() as root:
        asyncio.run(main(root))
