"""What is expected of the queue beside plain sums: nothing drifts, and no wait is longer than all there is."""

import pytest
from helpers.simulated_device import KnownWeights, make_sequence
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from seqloom_server.engine.admission.backlog import Backlog
from seqloom_server.engine.core.sequence import Member, Slice

WEIGHTS = KnownWeights()
LANES = st.tuples(st.sampled_from("abc"), st.booleans())


def add(backlog, lane=("a", False), steps=10, seconds=1.0, now=0.0):
    sequence = make_sequence(WEIGHTS, caller=lane[0])
    sequence.lane = lane
    backlog.add(sequence, steps, seconds, now)
    return sequence


def run(backlog, sequences, now, expected=None):
    """Takes all of the sequences in one slice, which ends at `now`."""
    members = []
    for sequence in sequences:
        member = Member(sequence, [], 1, 0, None, True, None, True, True, False)
        member.expected = backlog.take(sequence, sequence.expected_steps)
        members.append(member)
    slice_ = Slice(WEIGHTS, members, 1, len(members))
    backlog.served(slice_, sum(member.expected for member in members) if expected is None else expected, now)


class Books(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.backlog, self.now, self.held = Backlog(), 0.0, {}

    @rule(lane=LANES, steps=st.integers(1, 100), seconds=st.floats(0, 100))
    def add(self, lane, steps, seconds):
        self.held[add(self.backlog, lane, steps, seconds, self.now)] = [steps, seconds]

    @precondition(lambda self: self.held)
    @rule(data=st.data(), steps=st.integers(1, 100), seconds=st.floats(0, 100))
    def add_more(self, data, steps, seconds):
        sequence = data.draw(st.sampled_from(list(self.held)))
        self.backlog.add(sequence, steps, seconds, self.now)
        self.held[sequence][0] += steps
        self.held[sequence][1] += seconds

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def take(self, data):
        sequence = data.draw(st.sampled_from(list(self.held)))
        steps, seconds = self.held[sequence]
        count = data.draw(st.integers(0, steps))
        taken = self.backlog.take(sequence, count)
        assert taken == pytest.approx(seconds * count / steps, abs=1e-9)
        self.held[sequence] = [steps - count, seconds - taken]
        if count == steps:
            del self.held[sequence]

    @rule(seconds=st.floats(0, 3))
    def a_slice_runs(self, seconds):
        self.now += seconds
        taken = list(self.held)[:3]
        run(self.backlog, taken, self.now)
        for sequence in taken:
            del self.held[sequence]

    @invariant()
    def sums_are_those_of_what_is_held(self):
        backlog = self.backlog
        assert backlog.sequences == len(self.held)
        assert backlog.seconds == pytest.approx(sum(seconds for _, seconds in self.held.values()), abs=1e-6)
        assert set(backlog._lanes) == {sequence.lane for sequence in self.held}
        for lane, one in backlog._lanes.items():
            mine = [seconds for sequence, (_, seconds) in self.held.items() if sequence.lane == lane]
            assert one.sequences == len(mine)
            assert one.seconds == pytest.approx(sum(mine), abs=1e-6)
        if not self.held:
            assert backlog.seconds == 0

    @invariant()
    def waits_are_no_longer_than_all_and_longer_for_more(self):
        backlog = self.backlog
        for caller in "abcd":
            lane, waits = (caller, False), []
            paces = [backlog.pace.ratio(self.now)]
            if lane in backlog._lanes:
                paces.append(backlog._lanes[lane].pace.ratio(self.now))
            for own in (0.0, 0.01, 1.0, 100.0):
                waits.append(backlog.wait(lane, own, self.now))
                assert -1e-6 <= waits[-1] <= backlog.seconds * max(paces) + 1e-6
            assert waits == sorted(waits)


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_a_caller_waits_for_its_own_and_for_as_much_of_each_other():
    backlog = Backlog()
    add(backlog, ("flood", False), seconds=100.0)
    assert backlog.wait(("modest", False), 0.5, 0.0) == pytest.approx(0.5)
    assert backlog.wait(("flood", False), 0.5, 0.0) == pytest.approx(100.0)
    add(backlog, ("modest", False), seconds=1.0)
    assert backlog.wait(("modest", False), 0.5, 0.0) == pytest.approx(2.5)
    assert backlog.wait(("flood", False), 0.5, 0.0) == pytest.approx(101.0)
    assert backlog.wait(("third", False), 0.5, 0.0) == pytest.approx(1.0)


def test_a_caller_waits_longer_the_more_it_has_itself():
    backlog, waits = Backlog(), []
    add(backlog, ("other", False), seconds=50.0)
    for _ in range(40):
        waits.append(backlog.wait(("own", False), 1.0, 0.0))
        add(backlog, ("own", False), seconds=1.0)
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(1.0)
    assert waits[-1] == pytest.approx(2 * 39 + 1)


def served(ratio, *lanes, seconds=10.0):
    """Returns (backlog, now) of a long queue that has gone at a pace for a while, its lanes in turn."""
    backlog, now = Backlog(), 0.0
    waiting = {lane: [add(backlog, lane, seconds=0.1) for _ in range(1000)] for lane in lanes}
    while now < seconds:
        for lane in lanes:
            now += 0.1 * ratio
            run(backlog, [waiting[lane].pop()], now)
    return backlog, now


def test_the_queue_is_expected_to_go_as_fast_as_it_went():
    backlog, now = served(2.0, ("a", False))
    assert backlog.pace.ratio(now) == pytest.approx(2.0, rel=0.05)
    assert backlog.wait(("a", False), 0.1, now) == pytest.approx(2.0 * backlog.seconds, rel=0.05)


def test_a_lane_that_is_served_less_than_its_part_waits_for_as_long_as_that_takes():
    backlog, now = served(1.0, ("a", False), ("b", False))
    for lane in (("a", False), ("b", False)):
        assert backlog.wait(lane, 0.0, now) >= 0.9 * 2 * backlog._lanes[lane].seconds


def test_what_takes_all_there_is_does_not_pass_for_a_slow_queue():
    """A narrow slice takes longer for its steps than the full ones of a long queue."""
    backlog, now = Backlog(), 0.0
    for _ in range(100):
        sequence = add(backlog, seconds=0.01, now=now)
        now += 0.1
        run(backlog, [sequence], now, expected=0.1)
    assert backlog.pace.ratio(now) == pytest.approx(1.0, rel=0.05)


def test_slices_of_live_frames_say_nothing_of_the_queue():
    backlog = Backlog()
    add(backlog, seconds=5.0)
    stream = make_sequence(WEIGHTS)
    backlog.served(Slice(WEIGHTS, [Member(stream, [], 1, 0, None, True, None, True, True, False)], 1, 1), 0.1, 50.0)
    assert backlog.pace.ratio(50.0) == 1.0
