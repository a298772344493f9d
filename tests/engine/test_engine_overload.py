"""More than the engine takes: refused at once with when to come again, and nothing half done."""

import pytest
from helpers.engine_helpers import feed, make_frames, open_sequence, running_engine
from helpers.gate import Gate
from helpers.real_server import metric
from helpers.specs import make_spec
from seqloom_server.engine.core.sequence import Chunk, Op
from seqloom_server.errors import Reason, ServerError

SPEC = make_spec()


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
        assert metric(engine, "rejected_total", reason="queue_full") == 2
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
        assert metric(engine, "rejected_total", reason="queue_full") == 1
        for sink in sinks:
            await sink.until(lambda sink: sink.endings)
            assert sink.reason is Reason.SESSION_IDLE
        open_sequence(engine, Op.INFER)
