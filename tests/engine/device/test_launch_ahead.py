"""A device that computes on its own, as a GPU does: slices are launched ahead, and each gets what it gets alone.

Its copies are played by ones in place whose results come when the test lets them, so that what hangs on the order of
launching and finishing is seen on the CPU; the rectangles that a GPU has run here as they are.
"""

import asyncio
import contextlib
import threading

import numpy as np
import pytest
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
from helpers.gate import Gate
from helpers.real_server import metric, until
from helpers.specs import CELLS, make_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.engine.core.sequence import Op, OutputSpec
from seqloom_server.engine.device import device_thread
from seqloom_server.engine.device.transfers import InPlace
from seqloom_server.errors import Reason
from seqloom_server.nn.cuda_graphs.masked_layers import MaskedLayers


class Apart:
    """Copies whose results are there at once, or, once hold() was called, one for each let_come()."""

    apart = True

    def __init__(self):
        self.waits = 0
        self.break_with = None
        self.done = []
        self._held = False
        self._passes = threading.Semaphore(0)

    def open(self):
        while self.done:  # their memory is used again
            for result in self.done.pop().lent:
                result.fill_(-1)
        return _Apart(self)

    def timer(self):
        return InPlace().timer()

    def hold(self):
        self._held = True

    def let_come(self, count=1):
        self._passes.release(count)

    def wait(self):
        self.waits += 1
        if self._held:
            assert self._passes.acquire(timeout=60)
        if self.break_with is not None:
            error, self.break_with = self.break_with, None
            raise error


class _Apart(InPlace):
    def __init__(self, owner):
        self._owner = owner

    def end(self, results):
        self.lent = [result.clone() for result in results]
        return self.lent

    def wait(self):
        self._owner.wait()
        self._owner.done.append(self)
        return 1e-3


@contextlib.asynccontextmanager
async def running(root, spec, *, rectangles=False, **options):
    """An engine whose device is apart; yields it with its staging."""
    async with running_engine(root, spec, poison_slots=True, **options) as engine:
        staging = engine._device_thread._staging = Apart()
        weights = engine.registry.current("m0")
        if rectangles:
            weights.rectangles = MaskedLayers(weights.network, max_padding=1.0)
        yield engine, staging


@st.composite
def crowds(draw):
    cell, activation = draw(st.sampled_from(CELLS))
    spec = make_spec(
        cell, activation, layers=draw(st.integers(1, 2)), dtype=draw(st.sampled_from(["float32", "float64"]))
    )
    one = st.tuples(
        st.sampled_from([Op.STREAM, Op.INFER]),
        st.integers(1, 80),
        st.lists(st.integers(0, 30), max_size=4),
        st.booleans(),
    )
    return (
        spec,
        draw(st.lists(one, min_size=1, max_size=6)),
        draw(st.randoms(use_true_random=False)),
        draw(st.booleans()),
    )


@settings(max_examples=25, deadline=None)
@given(crowds())
def test_launched_ahead_in_rectangles_or_packed_each_gets_what_it_gets_alone(tmp_path_factory, crowd):
    spec, sequences, random, rectangles = crowd

    async def main():
        folder = tmp_path_factory.mktemp("models")
        async with running(folder, spec, rectangles=rectangles, max_batch_steps=60) as (engine, _):
            weights = engine.registry.current("m0")
            runs = []
            for number, (op, length, sizes, given_state) in enumerate(sequences):
                (frames,) = make_frames(spec, length, seed=number)
                state = make_state(spec, seed=number) if given_state else None
                kind = OutputSpec(["logits", "hidden"][number % 2])
                runs.append(
                    (*open_sequence(engine, op, output=kind, initial_state=state), frames, state, cut(frames, sizes))
                )
            due = [list(chunks) for *_, chunks in runs]
            while any(due):
                number = random.choice([number for number, chunks in enumerate(due) if chunks])
                feed(engine, runs[number][0], due[number].pop(0), end=not due[number])
                if random.random() < 0.3:
                    await asyncio.sleep(0)
            for number, (_, sink, frames, state, _) in enumerate(runs):
                await sink.wait()
                logits, final = alone(weights, frames, state)
                if number % 2 == 0:
                    np.testing.assert_allclose(sink.values, logits, **close_to(spec))
                assert sink.values.shape == (len(frames), 5 if number % 2 else 7)
                assert_states_close(sink.final_state, final, spec)

    asyncio.run(main())


async def test_the_next_slice_is_launched_while_the_last_ones_results_are_on_their_way(tmp_path):
    spec = make_spec()
    async with running(tmp_path, spec) as (engine, staging):
        weights = engine.registry.current("m0")
        gate = Gate(weights)
        gate.open()
        staging.hold()
        first, second, third = make_frames(spec, 3, 4, 5)
        one, its_sink = open_sequence(engine)
        feed(engine, one, first)
        await until(lambda: staging.waits == 1)
        other, others_sink = open_sequence(engine)
        feed(engine, other, second, end=True)
        feed(engine, one, third, end=True)  # waits for its own slice before
        staging.let_come()
        await until(lambda: len(gate.batches) > 1 and its_sink.pieces)
        assert not others_sink.pieces
        staging.let_come(5)
        for sink, frames in ((its_sink, np.concatenate([first, third])), (others_sink, second)):
            await sink.wait()
            np.testing.assert_allclose(sink.values, alone(weights, frames)[0], **close_to(spec))


@pytest.mark.parametrize(("ahead", "waiting", "waits"), [(10.0, 3, False), (0.0, 3, True), (10.0, 1, True)])
async def test_a_successor_is_formed_at_once_only_behind_a_short_slice_and_where_enough_waits(
    tmp_path, monkeypatch, ahead, waiting, waits
):
    spec = make_spec()
    monkeypatch.setattr(device_thread, "_LAUNCHED_AHEAD", ahead)
    async with running(tmp_path, spec) as (engine, staging):
        events = []
        weights = engine.registry.current("m0")
        gate = Gate(weights)
        monkeypatch.setattr(_Apart, "computed", lambda self: events.append("computed"))
        one, _ = open_sequence(engine)
        feed(engine, one, *make_frames(spec, 6))
        await gate.arrived()
        others = [open_sequence(engine) for _ in range(waiting)]
        for sequence, _ in others:
            feed(engine, sequence, *make_frames(spec, 1), end=True)
        gate.let_pass()
        await gate.arrived()  # the successor, while the first one's results have not been read
        assert staging.waits == 0
        assert events == (["computed"] if waits else [])
        gate.open()
        for _, sink in others:
            await sink.wait()


async def test_what_fails_on_the_device_fails_its_own_slice_alone(tmp_path):
    spec = make_spec()
    async with running(tmp_path, spec) as (engine, staging):
        staging.hold()
        one, its_sink = open_sequence(engine)
        feed(engine, one, *make_frames(spec, 3))
        await until(lambda: staging.waits == 1)
        other, others_sink = open_sequence(engine)
        (frames,) = make_frames(spec, 6)
        feed(engine, other, frames, end=True)
        staging.break_with = RuntimeError("an illegal memory access was encountered")
        staging.let_come(3)
        with pytest.raises(Exception, match="failed on the device"):
            await its_sink.wait()
        assert its_sink.reason == Reason.INTERNAL
        await others_sink.wait()
        np.testing.assert_allclose(
            others_sink.values, alone(engine.registry.current("m0"), frames)[0], **close_to(spec)
        )


async def test_what_cannot_be_launched_leaves_the_slice_before_it_alone(tmp_path):
    spec = make_spec()
    async with running(tmp_path, spec) as (engine, _):
        gate = Gate(engine.registry.current("m0"))
        one, its_sink = open_sequence(engine)
        feed(engine, one, *make_frames(spec, 3))
        await gate.arrived()
        other, others_sink = open_sequence(engine)
        feed(engine, other, *make_frames(spec, 2), end=True)
        gate.let_pass()
        await gate.arrived()  # the first one is under way
        gate.break_with = RuntimeError("no kernel image is available")
        gate.open()
        with pytest.raises(Exception, match="failed on the device"):
            await others_sink.wait()
        await its_sink.until(lambda sink: sink.steps == 3)
        assert its_sink.error is None


async def test_a_slice_that_is_under_way_ends_before_the_device_thread_stops(tmp_path):
    spec = make_spec()
    async with running(tmp_path, spec) as (engine, staging):
        staging.hold()
        sequence, sink = open_sequence(engine)
        feed(engine, sequence, *make_frames(spec, 3))
        await until(lambda: staging.waits == 1)
        staging.let_come()
        await asyncio.to_thread(engine._device_thread.stop, 60)
        assert not engine._device_thread._thread.is_alive()
        await sink.until(lambda sink: sink.steps == 3)
        assert sink.error is None


async def test_padding_is_counted_where_rectangles_have_it_and_seconds_are_the_devices(tmp_path):
    spec = make_spec()
    async with running(tmp_path, spec, rectangles=True) as (engine, _):
        sequence, sink = open_sequence(engine, Op.INFER)
        feed(engine, sequence, *make_frames(spec, 9), end=True)
        await sink.wait()
        labels = {"op": "infer", "model": "m0"}
        await until(lambda: metric(engine, "steps_total", **labels) == 9)
        assert metric(engine, "padded_steps_total", **labels) == 1, "9 steps go into a bucket of 10"
        assert metric(engine, "compute_duration_seconds_sum", **labels) == 1e-3
        assert metric(engine, "device_busy_seconds_total") == 1e-3
