"""Groups that are wider than a slice may be run some of their streams after others: in order, and delaying nobody."""

import collections

import numpy as np
import pytest
from helpers.simulated_device import Device, KnownWeights, make_sequence
from helpers.simulated_streams import delay, open_streams
from helpers.virtual_device import TimedWeights, VirtualDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.engine.core.sequence import Chunk, Op
from seqloom_server.engine.core.stream_group import GroupWork, StreamGroup
from seqloom_server.engine.scheduling.slice_fit import MIN_WIDTH

SLICE = 0.04  # seconds, that a slice may take
# seconds of a slice, a step and a cell, about as of an LSTM of 1,024 units on two cores: 5,000 streams take 0.49 s
LARGE = (1e-3, 1e-3, 98e-6)


def open_group(scheduler, weights, count, sink=None, **more):
    scheduler.live_sessions += count
    return make_sequence(weights, Op.STREAM, sink=sink, group=StreamGroup(count, None), **more)


class Stepping:
    """A group in a closed loop of steps of all its streams. calls: how many have run."""

    def __init__(self, device, weights, count):
        self.device, self.calls, self.frames = device, 0, np.zeros((1, count, 1), "f4")
        self.sequence = open_group(device.scheduler, weights, count, self, caller="wide")
        device.at(0.0, self.step)

    def step(self):
        chunk = Chunk(self.frames, self.device.now, work=GroupWork())
        self.device.scheduler.push(self.sequence, [chunk], self.device.now)

    def ran(self, now):
        if not self.sequence.waiting_steps:
            self.calls += 1
            self.step()

    def gone(self, now):
        return False


@pytest.mark.parametrize("guess", [1.0, 0.2])
@pytest.mark.parametrize("rate", [0.0, 100.0])
@pytest.mark.parametrize("caller", ["another", "wide"])
@pytest.mark.parametrize("model", ["another", "m"])
@pytest.mark.parametrize("chunk", [1, 10])
def test_a_step_of_5000_streams_of_a_large_network_delays_a_neighbour_by_a_slice(chunk, model, caller, rate, guess):
    device, weights = VirtualDevice(noise=0.0, slice_seconds=SLICE), TimedWeights(LARGE, guess=guess)
    group = Stepping(device, weights, 5000)
    others = weights if model == "m" else TimedWeights(LARGE, model=model)
    more = {"name": caller, "chunk": chunk, "interval": 0.13, "ends": 30.0, "more": {"rate": rate}}
    neighbours = open_streams(device, others, 1, **more)
    device.run(1.0)
    device.longest_slice = 0.0  # by now the cost is known
    device.run(30.0)
    own = others.true_seconds(chunk, chunk)
    assert device.longest_slice <= SLICE * 1.001
    assert len(neighbours[0].delays) > 200
    assert delay(neighbours, 50) <= 1.5 * SLICE + own, "the rest of what runs, and one slice that it may share"
    assert delay(neighbours, 100) <= 2 * SLICE + own
    assert group.calls >= 0.9 * 30.0 * (1 - own / 0.13) / 0.5, "to be cut costs the group itself little"


def test_a_call_that_waits_is_cut_by_the_cost_that_is_known_when_it_runs():
    device, weights = Device(slice_seconds=SLICE), KnownWeights(per_step=1e-3, per_cell=1e-6)
    group = open_group(device.scheduler, weights, 5000)
    for _ in range(2):
        device.scheduler.push(group, [Chunk(np.zeros((6, 5000, 1), "f4"), 0.0, work=GroupWork())], 0.0)
    piece = device.run()
    assert (piece.members[0].steps, piece.members[0].width) == (6, 5000)  # of 32,768 rows
    weights.cost.per_cell = 98e-6
    while group.waiting_steps:
        piece = device.run()
        assert piece.weights.cost.seconds(piece.steps, piece.cells) <= SLICE


@pytest.mark.parametrize("groups", [1, 2])
def test_forming_a_slice_looks_at_no_more_calls_than_a_slice_could_have(groups):
    class Counted(collections.deque):
        looked = 0

        def __iter__(self):
            for each in super().__iter__():
                Counted.looked += 1
                yield each

    device, weights, width = Device(), KnownWeights(per_step=1e-5, per_cell=1e-7), 64
    for _ in range(groups):
        group = open_group(device.scheduler, weights, width)
        group.chunks = Counted()
        frames, streams = np.zeros((1, width, 1), "f4"), np.arange(width)
        for _ in range(4000):
            device.scheduler.push(group, [Chunk(frames, 0.0, work=GroupWork(streams.copy()))], 0.0)
    Counted.looked = 0
    piece = device.start()
    assert piece.cells > 0.9 * 32768
    assert Counted.looked <= 3 * groups * 32768 / width


@st.composite
def calls(draw, n):
    """One call: the streams that run, None for all; their steps; what is done before, to which streams."""
    some = st.one_of(st.none(), st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True))
    return draw(some), draw(st.integers(0, 4)), draw(st.sampled_from(["", "", "set", "reset"])), draw(some)


class Streams:
    """What happens to each stream of a group: the states that it begins with (0 for zeros), and its frames."""

    def __init__(self, n):
        self.events = [[] for _ in range(n)]

    def run(self, streams, begins, frames):
        """begins: by position among the streams, the state that one begins with. frames: [k, w]."""
        for position, stream in enumerate(streams):
            if position in begins:
                self.events[stream].append(("state", begins[position]))
            self.events[stream] += frames[:, position].tolist()


def expected_of(n, made):
    """Returns what calls do to n streams, and their chunks; a set gives stream s of call c the state 1000 c + s."""
    streams, pending, chunks = Streams(n), dict.fromkeys(range(n), 0.0), []
    for number, (which, steps, change, where) in enumerate(made, 1):
        changed = list(range(n)) if where is None else where
        states = [1000.0 * number + stream for stream in changed]
        if change:
            pending |= dict(zip(changed, states if change == "set" else [0.0] * len(changed), strict=True))
        runs = list(range(n)) if which is None else which
        frames = 1e6 * number + np.arange(steps * len(runs), dtype=float).reshape(steps, len(runs))
        begins = {i: pending.pop(stream) for i, stream in enumerate(runs) if stream in pending}
        streams.run(runs, begins, frames)
        work = GroupWork(
            None if which is None else np.array(which),
            (None if where is None else np.array(where), (np.array(states)[None, :, None],))
            if change == "set"
            else None,
            np.array(changed) if change == "reset" else None,
        )
        chunks.append(Chunk(frames[:, :, None], 0.0, work=work))
    return streams, chunks


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_stream_gets_its_states_and_frames_in_order_however_its_group_is_cut(data):
    most_rows, most_cells = data.draw(st.tuples(st.integers(1, 60), st.sampled_from([1 << 20, 37, 5])))
    weights = KnownWeights(
        per_step=data.draw(st.sampled_from([1e-5, 1e-3])),
        per_cell=data.draw(st.sampled_from([1e-6, 2e-4, 1e-3, 3e-3])),
        max_cells=most_cells,
    )
    device = Device(slice_seconds=SLICE, max_batch_steps=most_rows)
    groups = []
    for _ in range(data.draw(st.integers(1, 2))):
        n = data.draw(st.integers(1, 100))
        expected, chunks = expected_of(n, data.draw(st.lists(calls(n), min_size=1, max_size=5)))
        groups.append((open_group(device.scheduler, weights, n), expected, Streams(n)))
        device.scheduler.push(groups[-1][0], chunks, 0.0)
    (single,) = device.open(weights, Op.STREAM)
    device.push(single, 30)
    seen = {sequence: streams for sequence, _, streams in groups}
    while (piece := device.start()) is not None:
        for member in piece.members:
            if member.sequence is not single:
                see(member, seen[member.sequence])
        seconds = weights.cost.seconds(piece.steps, piece.cells)
        in_time = seconds <= max(SLICE, 2 * weights.cost.seconds(1, 1)) * (1 + 1e-9)
        assert in_time or (piece.steps == 1 and piece.cells <= MIN_WIDTH)
        assert piece.cells <= min(most_rows, most_cells) or piece.cells == 1
        device.finish(piece)
    for _, expected, streams in groups:
        assert streams.events == expected.events
    assert single.steps_done == 30
    assert (device.scheduler.waiting_steps, device.scheduler.waiting_bytes, device.scheduler.queued) == (0, 0, 0)


def see(member, streams):
    """Adds what a member of a slice does to the streams of its group."""
    which = range(len(streams.events)) if member.streams is None else member.streams.tolist()
    begins = {}
    if member.beginnings is not None:
        begins = dict.fromkeys(np.flatnonzero(member.beginnings.fresh).tolist(), 0.0)
        if member.beginnings.states:
            values = member.beginnings.states[0][0, :, 0].tolist()
            begins |= dict(zip(member.beginnings.given.tolist(), values, strict=True))
    frames = [part[:, :, 0] for part in member.parts]
    streams.run(which, begins, np.concatenate(frames) if frames else np.zeros((0, member.width)))
