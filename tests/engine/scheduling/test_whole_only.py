"""Sequences that must not be cut: they wait for their last frames, run in one slice, and share it with others."""

import numpy as np
import pytest
from helpers.engine_helpers import alone, close_to, feed, make_frames, open_sequence, running_engine
from helpers.simulated_device import Device, KnownWeights, make_chunk, make_sequence, sequences_of
from helpers.specs import make_spec
from seqloom_server.engine.core.sequence import Op
from seqloom_server.engine.core.session_window import is_idle
from seqloom_server.errors import Reason, ServerError


def test_it_waits_for_its_last_chunk_and_then_runs_in_one_slice():
    device = Device(slice_seconds=0.001, bulk_slice_seconds=0.001)
    sequence = make_sequence(KnownWeights(whole_only=True))
    device.push(sequence, 30, 20)
    assert device.start() is None
    device.push(sequence, 10, last=True)
    (member,) = device.run().members
    assert (member.steps, member.final) == (60, True)
    assert device.start() is None
    assert device.scheduler.waiting_steps == 0


def test_others_join_while_the_slice_is_at_most_twice_the_first_ones_time():
    device = Device(slice_seconds=0.001, bulk_slice_seconds=0.001)
    weights = KnownWeights(per_step=1.05e-3, per_cell=1e-4, whole_only=True)
    sequences = [make_sequence(weights) for _ in range(20)]
    for sequence in sequences:
        device.push(sequence, 100, last=True)
    # alone 115 ms; each one more 10 ms
    assert sequences_of(device.run()) == sequences[:12]
    assert sequences_of(device.run()) == sequences[12:]


def test_a_longer_one_joins_whole_or_not_at_all():
    device = Device(max_batch_steps=300)
    weights = KnownWeights(whole_only=True)
    short, long, other = (make_sequence(weights) for _ in range(3))
    for sequence, steps in ((short, 50), (long, 200), (other, 10)):
        device.push(sequence, steps, last=True)
    slices = [device.run() for _ in range(2)]
    assert [sequences_of(piece) for piece in slices] == [[short], [long]]
    assert [[member.steps for member in piece.members] for piece in slices] == [[50], [200]]
    assert sequences_of(device.run()) == [other]


@pytest.mark.parametrize("sizes", [[301], [150, 151], [300, 1]])
def test_one_beyond_a_batch_is_refused_and_nothing_of_it_kept(sizes):
    device = Device(max_batch_steps=300)
    sequence = make_sequence(KnownWeights(whole_only=True))
    device.scheduler.push(sequence, [make_chunk(size) for size in sizes[:-1]], 0.0)
    with pytest.raises(ServerError, match="300") as caught:
        device.scheduler.push(sequence, [make_chunk(sizes[-1], last=True)], 0.0)
    assert caught.value.reason is Reason.OVER_LIMIT
    device.scheduler.cancel(sequence)
    assert device.scheduler.waiting_steps == device.scheduler.waiting_bytes == 0
    assert device.start() is None


def test_one_whose_last_frames_never_come_is_idle():
    device = Device()
    sequence = make_sequence(KnownWeights(whole_only=True))
    device.push(sequence, 5)
    assert is_idle(sequence, 11.0, 10.0)
    device.push(sequence, 5, last=True)
    assert not is_idle(sequence, 11.0, 10.0)


def test_one_that_waits_for_frames_leaves_without_a_trace_when_it_is_cancelled_or_late():
    device = Device()
    weights = KnownWeights(whole_only=True)
    cancelled, late = make_sequence(weights), make_sequence(weights, deadline=1.0)
    for sequence in (cancelled, late):
        device.push(sequence, 5)
    device.scheduler.cancel(cancelled)
    assert device.scheduler.expire(2.0) == [late]
    assert device.scheduler.waiting_steps == device.scheduler.waiting_bytes == device.scheduler.queued == 0


async def test_of_more_rows_than_an_output_buffer_takes_every_kind_is_right(tmp_path, monkeypatch):
    monkeypatch.setattr("seqloom_server.nn.forward.outputs.MAX_BUFFER_BYTES", 8 * 7 * 16)  # sixteen rows
    spec = make_spec("gru", bidirectional=True)
    (frames,) = make_frames(spec, 100)
    async with running_engine(tmp_path, spec, max_slice_ms=1.0, bulk_slice_ms=1.0, poison_slots=True) as engine:
        weights = engine.registry.current("m0")
        assert weights.max_cells == 16
        sequence, sink = open_sequence(engine, Op.INFER)
        feed(engine, sequence, frames[:30], frames[30:], end=True)
        await sink.wait()
        expected, final = alone(weights, frames)
        np.testing.assert_allclose(sink.values, expected, **close_to(spec))
        assert [piece.steps for piece in sink.pieces] == [100]
        np.testing.assert_allclose(sink.final_state[0], final[0], **close_to(spec))
