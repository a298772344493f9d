"""A slice that finds no memory runs in parts: all get what they get alone, but for who does not fit alone."""

import asyncio
import tempfile

import numpy as np
import pytest
from helpers.engine_helpers import (
    Collected,
    alone,
    assert_states_close,
    close_to,
    feed,
    make_frames,
    make_state,
    open_sequence,
    running_engine,
)
from helpers.frames import cut
from helpers.gate import Gate
from helpers.plain_group import PlainGroup
from helpers.real_server import metric, until
from helpers.short_memory import ShortMemory, fail
from helpers.specs import make_spec, specs
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.engine.core.sequence import Chunk, Member, Op, OutputSpec, Sequence, Slice
from seqloom_server.engine.core.stream_group import GroupWork, StreamGroup
from seqloom_server.engine.device import slice_parts
from seqloom_server.engine.device.slice_in_flight import SliceInFlight
from seqloom_server.errors import Overload, Reason

SPEC = make_spec("lstm")


@st.composite
def crowds(draw):
    """A spec, and sequences that share a device: class, length, chunk sizes, a given state or none, snapshots."""
    one = st.tuples(
        st.sampled_from([Op.STREAM, Op.INFER]),
        st.integers(1, 90),
        st.lists(st.integers(0, 30), max_size=4),
        st.booleans(),
        st.sampled_from([0, 7]),
    )
    return draw(specs()), draw(st.lists(one, min_size=1, max_size=8))


@pytest.mark.parametrize("stage", ["advance", "outputs"])
@settings(max_examples=25, deadline=None)
@given(crowds(), st.integers(1, 60))
def test_however_little_memory_there_is_each_gets_what_it_gets_alone(stage, crowd, most):
    spec, sequences = crowd

    async def main(root):
        async with running_engine(root, spec, max_batch_steps=150, poison_slots=True) as engine:
            weights = engine.registry.current("m0")
            short = ShortMemory(weights, most, stage)
            runs = []
            for number, (op, length, sizes, given_state, interval) in enumerate(sequences):
                (frames,) = make_frames(spec, length, seed=number)
                state = make_state(spec, seed=number) if given_state else None
                sequence, sink = open_sequence(engine, op, initial_state=state, snapshot_interval=interval)
                chunks = cut(frames, sizes)
                for place, chunk in enumerate(chunks):
                    feed(engine, sequence, chunk, end=place == len(chunks) - 1)
                runs.append((sink, frames, state, interval))
            for sink, frames, state, interval in runs:
                await sink.wait()
                expected, final = alone(weights, frames, state)
                np.testing.assert_allclose(sink.values, expected, **close_to(spec))
                assert_states_close(sink.final_state, final, spec)
                firsts = np.cumsum([0, *(piece.steps for piece in sink.pieces)])
                assert [piece.first_step for piece in sink.pieces] == firsts[:-1].tolist()
                told = [piece for piece in sink.pieces if piece.snapshot is not None]
                assert len(told) == (len(frames) // interval if interval else 0)
                for piece in told:
                    assert_states_close(
                        piece.snapshot, alone(weights, frames[: piece.first_step + piece.steps], state)[1], spec
                    )
            assert engine.alive
            assert weights.slots.in_use == 0
            assert max(short.rows) <= most
            assert (engine._scheduler.waiting_steps, engine._scheduler.waiting_bytes) == (0, 0)

    with tempfile.TemporaryDirectory() as root:
        asyncio.run(main(root))


@pytest.mark.parametrize("begins", [False, True])
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(6, 20))
def test_a_group_runs_in_parts_by_its_steps(begins, n, steps, most):
    async def main(root):
        async with running_engine(root, SPEC, poison_slots=True) as engine:
            weights = engine.registry.current("m0")
            ShortMemory(weights, most)
            draw = np.random.default_rng(n)
            initial = tuple(
                draw.standard_normal((rows, n, width)) for rows, width in SPEC.state_shapes().values()
            ) if begins else None  # fmt: skip
            plain, sink = PlainGroup(weights.network, n, initial), Collected()
            group = engine.open(weights, Op.STREAM, OutputSpec(), sink, group=StreamGroup(n, initial))
            wanted = []
            for count in steps:
                frames = draw.standard_normal((n, count, SPEC.input_size))
                wanted.append(plain.run(np.arange(n), frames))
                assert engine.feed([(group, [Chunk(frames.transpose(1, 0, 2), 0.0, work=GroupWork())])]) == []
            end = Chunk(np.empty((0, n, SPEC.input_size)), 0.0, silent=True, last=True, work=GroupWork())
            assert engine.feed([(group, [end])]) == []
            await sink.wait()
            parts = [piece.values.reshape(n, piece.steps, -1) for piece in sink.pieces if piece.values is not None]
            np.testing.assert_allclose(np.concatenate(parts, 1), np.concatenate(wanted, 1), **close_to(SPEC))
            assert_states_close(sink.final_state, plain.states, SPEC)

    with tempfile.TemporaryDirectory() as root:
        asyncio.run(main(root))


async def test_only_who_does_not_fit_alone_is_refused_and_the_engine_lives_on(tmp_path):
    spec = make_spec(bidirectional=True)  # whose sequences cannot be parted
    async with running_engine(tmp_path, spec) as engine:
        weights = engine.registry.current("m0")
        ShortMemory(weights, 20)
        gate = Gate(weights)
        runs = [(*open_sequence(engine, Op.INFER), frames) for frames in make_frames(spec, *[9, 30] * 6)]
        for sequence, _, frames in runs:  # together in few slices: all of them wait at the gate
            feed(engine, sequence, frames, end=True)
        await gate.arrived()
        gate.open()
        for _, sink, frames in runs:
            await sink.until(lambda sink: sink.endings)
            if len(frames) == 9:
                np.testing.assert_allclose(sink.values, alone(weights, frames)[0], **close_to(spec))
            else:
                assert sink.reason is Reason.OVERLOADED
                assert sink.error.cause is Overload.MEMORY
                assert sink.error.retry_after
        assert engine.alive, "six in a row have found no memory"
        assert metric(engine, "rejected_total", reason="memory") == 6


async def test_more_slices_in_a_row_than_failures_are_allowed_find_no_memory_and_none_counts(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        weights = engine.registry.current("m0")
        (frames,) = make_frames(SPEC, 10)
        stream, kept = open_sequence(engine)
        feed(engine, stream, frames)
        await kept.until(lambda sink: sink.steps == 10)
        short = ShortMemory(weights, 0)
        for _ in range(12):
            sequence, sink = open_sequence(engine, Op.INFER)
            feed(engine, sequence, frames, end=True)
            await sink.until(lambda sink: sink.endings)
            assert sink.reason is Reason.OVERLOADED
        assert engine.alive
        short.most = 100
        feed(engine, stream, frames, end=True)
        await kept.wait()
        np.testing.assert_allclose(kept.values, alone(weights, np.concatenate([frames, frames]))[0], **close_to(SPEC))
        assert weights.slots.in_use == 0


async def test_results_that_find_no_memory_leave_the_states_as_they_were(tmp_path, monkeypatch):
    """Outputs are collected before states are written: to run a part again is no second step."""
    collect, most = SliceInFlight.collect, 4

    def short(flight):
        if flight.slice_.cells > most:
            fail()
        collect(flight)

    async with running_engine(tmp_path, SPEC, poison_slots=True) as engine:
        weights = engine.registry.current("m0")
        monkeypatch.setattr(SliceInFlight, "collect", short)
        runs = [(*open_sequence(engine), frames) for frames in make_frames(SPEC, 12, 30, 7)]
        for part in (slice(0, 5), slice(5, None)):
            for sequence, _, frames in runs:
                feed(engine, sequence, frames[part], end=part.stop is None)
        for _, sink, frames in runs:
            await sink.wait()
            expected, final = alone(weights, frames)
            np.testing.assert_allclose(sink.values, expected, **close_to(SPEC))
            assert_states_close(sink.final_state, final, SPEC)


async def test_without_memory_for_more_states_those_that_have_a_place_go_on(tmp_path):
    async with running_engine(tmp_path, SPEC, poison_slots=True) as engine:
        weights = engine.registry.current("m0")
        allocate, room = weights._allocate, weights.capacity

        def short(capacity):
            if capacity > room:
                fail()
            return allocate(capacity)

        weights._allocate = short
        runs = [(*open_sequence(engine), frames) for frames in make_frames(SPEC, *[10] * 40)]
        for sequence, _, frames in runs:
            feed(engine, sequence, frames[:4])
        for _, sink, _ in runs:
            await sink.until(lambda sink: sink.endings or sink.steps == 4)
        kept = [run for run in runs if not run[1].endings]
        assert len(kept) == room - 2, "all but the reserved slots"
        assert all(sink.reason is Reason.OVERLOADED for _, sink, _ in runs if sink.endings)
        for sequence, sink, frames in kept:
            feed(engine, sequence, frames[4:], end=True)
            await sink.wait()
            np.testing.assert_allclose(sink.values, alone(weights, frames)[0], **close_to(SPEC))
        await until(lambda: weights.slots.in_use == 0)


def test_what_has_been_written_is_not_run_again():
    launched = []

    def launch(part):
        launched.append(part)
        part.written = True
        fail()

    class Weights:
        whole_only = False

    weights = Weights()
    members = [
        Member(
            Sequence(Op.STREAM, weights, OutputSpec(), None),
            [np.zeros((4, 3))],
            steps=4,
            first_step=0,
            waited=None,
            fresh=True,
            initial_state=None,
            answers=True,
            final=False,
            snapshot=False,
        )
        for _ in range(2)
    ]
    done = slice_parts.run(Slice.of(weights, members), launch, lambda _: None)
    assert [len(part.members) for part in launched] == [1, 1]
    assert done.lost == {member.sequence for member in members}
    assert not done.results
