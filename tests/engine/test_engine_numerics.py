"""Through the whole engine: alone, in any batch, in any order and in chunks of any sizes, a sequence gets the same."""

import asyncio
import tempfile

import numpy as np
import pytest
import torch
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
from helpers.frames import cut
from helpers.plain_twin import plain_outputs
from helpers.specs import CELLS, make_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.engine.core.sequence import Chunk, Op, OutputSpec
from seqloom_server.nn.reference import reference_forward


@st.composite
def crowds(draw):
    """A spec, and sequences that share a device: class, length, chunk sizes, whether it starts from a given state."""
    cell, activation = draw(st.sampled_from(CELLS))
    spec = make_spec(
        cell,
        activation,
        layers=draw(st.integers(1, 2)),
        dtype=draw(st.sampled_from(["float32", "float64"])),
        sizes=(draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 5))),
    )
    one = st.tuples(
        st.sampled_from([Op.STREAM, Op.INFER]),
        st.integers(1, 300),
        st.lists(st.integers(0, 60), max_size=6),
        st.booleans(),
        st.sampled_from([0, 0, 7]),
    )
    return spec, draw(st.lists(one, min_size=1, max_size=8)), draw(st.randoms(use_true_random=False))


@settings(max_examples=60, deadline=None)
@given(crowds())
def test_whoever_shares_the_batch_and_however_it_is_cut_each_gets_what_it_gets_alone(crowd):
    spec, sequences, random = crowd

    async def main(root):
        # slices so small that everything is cut, and slots that tell on whoever reads what is not theirs
        async with running_engine(root, spec, max_batch_steps=150, poison_slots=True) as engine:
            weights = engine.registry.current("m0")
            runs = []
            for number, (op, length, sizes, given_state, interval) in enumerate(sequences):
                (frames,) = make_frames(spec, length, seed=number)
                state = make_state(spec, seed=number) if given_state else None
                sequence, sink = open_sequence(engine, op, initial_state=state, snapshot_interval=interval)
                runs.append((sequence, sink, frames, state, cut(frames, sizes), interval))
            due = [list(chunks) for *_, chunks, _ in runs]
            while any(due):  # the next chunk of whoever's turn it is
                number = random.choice([number for number, chunks in enumerate(due) if chunks])
                feed(engine, runs[number][0], due[number].pop(0), end=not due[number])
                if random.random() < 0.3:
                    await asyncio.sleep(0)
            for _, sink, frames, state, _, interval in runs:
                await sink.wait()
                expected, final = alone(weights, frames, state)
                np.testing.assert_allclose(sink.values, expected, **close_to(spec))
                assert_states_close(sink.final_state, final, spec)
                firsts = np.cumsum([0, *(piece.steps for piece in sink.pieces)])
                assert [piece.first_step for piece in sink.pieces] == firsts[:-1].tolist()
                told = [piece for piece in sink.pieces if piece.snapshot is not None]
                assert len(told) == (len(frames) // interval if interval else 0)
                for piece in told:
                    done = piece.first_step + piece.steps
                    assert done % interval == 0
                    assert_states_close(piece.snapshot, alone(weights, frames[:done], state)[1], spec)

    with tempfile.TemporaryDirectory() as root:
        asyncio.run(main(root))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
async def test_every_cell_gives_what_the_plain_twin_gives(tmp_path, cell, activation, dtype):
    spec = make_spec(cell, activation, layers=2, dtype=dtype, sizes=(8, 16, 10))
    async with running_engine(tmp_path, spec) as engine:
        runs = []
        for frames in make_frames(spec, 1, 300, 43, 43, 2, 120):
            sequence, sink = open_sequence(engine, Op.INFER)
            feed(engine, sequence, frames, end=True)
            runs.append((frames, sink))
        for frames, sink in runs:
            await sink.wait()
            expected, final = alone(engine.registry.current("m0"), frames)
            np.testing.assert_allclose(sink.values, expected, **close_to(spec))
            assert_states_close(sink.final_state, final, spec)


async def test_callers_of_one_batch_each_get_the_output_that_they_want(tmp_path):
    spec = make_spec()
    kinds = ["logits", "probs", "log_probs", "labels", "hidden", "top_k"]
    async with running_engine(tmp_path, spec) as engine:
        weights = engine.registry.current("m0")
        runs = []
        for kind, frames in zip(kinds, make_frames(spec, 5, 9, 1, 30, 12, 9), strict=True):
            sequence, sink = open_sequence(engine, Op.INFER, output=OutputSpec(kind, 3 if kind == "top_k" else 0))
            runs.append((kind, frames, sequence, sink))
        # all at once, so that they share a slice
        assert not engine.feed((sequence, [Chunk(frames, 0.0, last=True)]) for _, frames, sequence, _ in runs)
        for kind, frames, _, sink in runs:
            await sink.wait()
            (piece,) = sink.pieces
            hidden, logits, _ = plain_outputs(weights.network, frames)
            expected = {
                "logits": logits,
                "probs": reference_forward.softmax(logits),
                "log_probs": reference_forward.log_softmax(logits),
                "labels": None,
                "hidden": hidden,
                "top_k": np.sort(reference_forward.log_softmax(logits), 1)[:, ::-1][:, :3],
            }[kind]
            if expected is None:
                assert piece.values is None
                assert piece.labels.tolist() == logits.argmax(1).tolist()
            else:
                np.testing.assert_allclose(piece.values, expected, **close_to(spec))
            if kind == "top_k":
                assert piece.labels.tolist() == np.argsort(-logits, 1)[:, :3].tolist()


@pytest.mark.parametrize("cell", ["elman", "lstm"])
async def test_a_reset_in_the_middle_starts_anew_and_goes_on_counting(tmp_path, cell):
    spec = make_spec(cell)
    first, second, third = make_frames(spec, 10, 20, 5)
    async with running_engine(tmp_path, spec, poison_slots=True) as engine:
        weights = engine.registry.current("m0")
        stream, sink = open_sequence(engine, initial_state=make_state(spec))
        chunks = [
            Chunk(first, 0.0),
            Chunk(second, 0.0, reset=True),
            Chunk(first[:0], 0.0, reset=True, silent=True),
            Chunk(third, 0.0),
            Chunk(first[:0], 0.0, reset=True, last=True, silent=True),
        ]
        assert not engine.feed([(stream, chunks)])
        await sink.wait()
        expected = [alone(weights, first, make_state(spec))[0], alone(weights, second)[0], alone(weights, third)[0]]
        np.testing.assert_allclose(sink.values, np.concatenate(expected), **close_to(spec))
        assert [piece.first_step for piece in sink.pieces if piece.steps] == [0, 10, 30]
        for part in sink.final_state:
            assert not part.any(), "nothing came after the last reset"


async def test_a_chunk_of_no_steps_is_answered_by_an_empty_output_in_its_place(tmp_path):
    spec = make_spec()
    (frames,) = make_frames(spec, 6)
    async with running_engine(tmp_path, spec) as engine:
        stream, sink = open_sequence(engine)
        feed(engine, stream, frames[:0], frames[:4], frames[:0], frames[4:], frames[:0], end=True)
        await sink.wait()
        assert [piece.steps for piece in sink.pieces] == [0, 4, 0, 2, 0]
        assert all(piece.answers for piece in sink.pieces)
        np.testing.assert_allclose(sink.values, alone(engine.registry.current("m0"), frames)[0], **close_to(spec))


async def test_states_stay_right_when_their_pool_grows(tmp_path):
    spec = make_spec("gru")
    async with running_engine(tmp_path, spec, poison_slots=True) as engine:
        weights = engine.registry.current("m0")
        before = weights.state_bytes
        streams = [(*open_sequence(engine), frames) for frames in make_frames(spec, *[8] * 100)]
        for stream, sink, frames in streams:  # one after the other, so that the pool grows while states are in it
            feed(engine, stream, frames[:5])
            await sink.until(lambda sink: sink.steps == 5)
        assert weights.state_bytes > before
        for stream, _, frames in streams:
            feed(engine, stream, frames[5:], end=True)
        for _, sink, frames in streams:
            await sink.wait()
            np.testing.assert_allclose(sink.values, alone(weights, frames)[0], **close_to(spec))


async def test_a_given_state_may_be_memory_that_must_not_be_written(tmp_path, recwarn):
    spec = make_spec("lstm")
    (frames,) = make_frames(spec, 5)
    state = tuple(np.frombuffer(part.tobytes(), part.dtype).reshape(part.shape) for part in make_state(spec))
    async with running_engine(tmp_path, spec) as engine:
        sequence, sink = open_sequence(engine, Op.INFER, initial_state=state)
        feed(engine, sequence, np.frombuffer(frames.tobytes(), frames.dtype).reshape(frames.shape), end=True)
        await sink.wait()
        expected, _ = alone(engine.registry.current("m0"), frames, state)
        np.testing.assert_allclose(sink.values, expected, **close_to(spec))
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]


async def test_outputs_and_states_that_are_handed_out_keep_no_one_elses_in_memory(tmp_path):
    spec = make_spec()
    async with running_engine(tmp_path, spec) as engine:
        runs = [(*open_sequence(engine, Op.INFER), frames) for frames in make_frames(spec, 10, 10, 40)]
        assert not engine.feed((sequence, [Chunk(frames, 0.0, last=True)]) for sequence, _, frames in runs)
        for _, sink, _ in runs:
            await sink.wait()
            (piece,) = sink.pieces
            for array in (piece.values, *piece.final_state):
                owner = array if array.base is None else array.base
                assert array.nbytes == owner.nbytes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
async def test_the_gpu_gives_what_the_plain_twin_gives(tmp_path, cell, activation, dtype):
    spec = make_spec(cell, activation, layers=2, dtype=dtype, sizes=(8, 16, 10))
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == "float64" else {"rtol": 1e-4, "atol": 1e-5}
    async with running_engine(tmp_path, spec, device="cuda", poison_slots=True) as engine:
        weights = engine.registry.current("m0")
        runs = []
        for number, frames in enumerate(make_frames(spec, 1, 300, 43, 43, 2, 120)):
            state = make_state(spec) if number % 2 else None
            sequence, sink = open_sequence(engine, [Op.STREAM, Op.INFER][number % 2], initial_state=state)
            feed(engine, sequence, *cut(frames, [20, 1, 7]), end=True)
            runs.append((frames, state, sink))
        for frames, state, sink in runs:
            await sink.wait()
            expected, final = alone(weights, frames, state)
            np.testing.assert_allclose(sink.values, expected, **tolerance)
            for got, wanted in zip(sink.final_state, final, strict=True):
                np.testing.assert_allclose(got, wanted, **tolerance)
