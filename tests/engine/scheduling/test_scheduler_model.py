"""The scheduler against a plain model of it: anything may come, end, fail or be cancelled at any time."""

import numpy as np
from helpers.simulated_device import KnownWeights, make_sequence
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule
from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.sequence import Chunk, Op
from seqloom_server.engine.scheduling.scheduler import Scheduler
from seqloom_server.errors import Reason, ServerError

LIMITS = SchedulerLimits(
    max_batch_sequences=5,
    max_batch_steps=60,
    slice_seconds=0.03,
    bulk_slice_seconds=0.1,
    grain_seconds=0.002,
    halved=2,
    max_queue_items=12,
    max_queue_steps=250,
    max_queue_bytes=250 * 16,
)


class Expected:
    """What one sequence must go through, event by event, and what of it has been seen in slices."""

    def __init__(self, sequence):
        self.sequence = sequence
        self.pushed = []
        self.ran = []
        self.chunks = []  # [steps not yet taken, bytes of one] of each chunk that waits
        self.closed = False
        self.gone = False  # cancelled, failed or expired


class SchedulerMachine(RuleBasedStateMachine):
    sequences = Bundle("sequences")
    slices = Bundle("slices")

    def __init__(self):
        super().__init__()
        self.scheduler = Scheduler(LIMITS)
        self.weights = [KnownWeights("a"), KnownWeights("b", max_cells=7)]
        self.now = 0.0
        self.known = []
        self.in_flight = []

    @rule(
        target=sequences,
        op=st.sampled_from([Op.STREAM, Op.INFER]),
        weights=st.integers(0, 1),
        timeout=st.none() | st.floats(0, 5),
        interval=st.sampled_from([0, 0, 1, 3, 10]),
    )
    def open(self, op, weights, timeout, interval):
        deadline = None if timeout is None else self.now + timeout
        sequence = make_sequence(
            self.weights[weights], op, initial_state=(), deadline=deadline, snapshot_interval=interval
        )
        expected = Expected(sequence)
        self.known.append(expected)
        return expected

    @rule(
        expected=sequences,
        sizes=st.lists(st.integers(0, 30), min_size=1, max_size=3),
        reset=st.booleans(),
        last=st.booleans(),
        silent=st.booleans(),
    )
    def push(self, expected, sizes, reset, last, silent):
        if expected.closed:
            return
        first = len([event for event in expected.pushed if isinstance(event, int)])
        chunks, events = [], []
        for number, size in enumerate(sizes):
            rows = np.arange(first, first + size, dtype="f8").repeat(2).reshape(size, 2)
            first += size
            chunk = Chunk(rows, self.now, reset=reset and not number, last=last and number == len(sizes) - 1)
            chunk.silent = silent and not size and (chunk.reset or chunk.last)
            chunks.append(chunk)
            events += ["reset"] * chunk.reset + rows[:, 0].astype(int).tolist()
            events += ["empty"] * (not size and not chunk.silent) + ["end"] * chunk.last
        steps, size, items = before = self.totals()
        refusal = None
        try:
            self.scheduler.push(expected.sequence, chunks, self.now)
        except ServerError as error:
            refusal = error
        part = 1 if expected.sequence.op is Op.STREAM else 0.75
        joins = not expected.sequence.in_flight and len(expected.ran) == len(expected.pushed)
        full = (
            steps + sum(sizes) > part * LIMITS.max_queue_steps
            or size + 16 * sum(sizes) > part * LIMITS.max_queue_bytes
            or (joins and items >= part * LIMITS.max_queue_items)
        )
        assert (refusal is not None) == (full and not expected.gone)
        if refusal is not None:
            assert refusal.reason is Reason.OVERLOADED
            assert refusal.retry_after > 0
            assert self.totals() == before
            return
        if not expected.gone:
            expected.pushed += events
            expected.chunks += [len(chunk.rows) for chunk in chunks]
        expected.closed = last

    @rule(expected=sequences)
    def cancel(self, expected):
        self.scheduler.cancel(expected.sequence)
        self.lose(expected)

    @rule(seconds=st.floats(0, 3))
    def pass_time(self, seconds):
        self.now += seconds
        due = {
            each.sequence
            for each in self.known
            if each.pushed
            and not self.is_over(each)
            and each.sequence.deadline is not None
            and each.sequence.deadline <= self.now
            and (each.sequence.op is not Op.STREAM or not each.sequence.started)
        }
        assert set(self.scheduler.expire(self.now)) == due
        for each in self.known:
            if each.sequence in due:
                self.lose(each)

    @rule(count=st.integers(0, 1))
    def live_sessions(self, count):
        self.scheduler.live_sessions = count

    @precondition(lambda self: len(self.in_flight) < 3)
    @rule(target=slices)
    def take(self):
        waiting = self.scheduler.queued
        piece = self.scheduler.next_work(self.now)
        assert (piece is None) == (not waiting), "work-conserving: a slice whenever something waits"
        if piece is None:
            return None
        self.in_flight.append(piece)
        self.check_bounds(piece)
        for member in piece.members:
            self.see(member)
        return piece

    @rule(piece=consumes(slices), seconds=st.floats(0, 0.2), failed=st.booleans())
    def complete(self, piece, seconds, failed):
        if piece is None:
            return
        self.in_flight.remove(piece)
        self.now += seconds
        self.scheduler.complete(piece, seconds, self.now, failed=failed)
        for member in piece.members:
            expected = self.of(member.sequence)
            if failed:
                self.lose(expected)
            elif member.final and not expected.gone:
                assert expected.ran == expected.pushed, "it ended when everything had run"

    def check_bounds(self, piece):
        members = piece.members
        assert 0 < len(members) <= LIMITS.max_batch_sequences
        assert {member.sequence.weights for member in members} == {piece.weights}
        assert len({member.sequence for member in members}) == len(members)
        assert piece.steps == max(member.steps for member in members)
        assert piece.cells == sum(member.steps for member in members)
        wide = sum(1 for member in members if member.steps)
        budget = LIMITS.slice_seconds if self.scheduler.live_sessions else LIMITS.bulk_slice_seconds
        budget = max(budget, 2 * piece.weights.cost.seconds(1, 1))
        if piece.cells > 1:  # a slice of one step is as small as they come
            assert piece.steps * wide <= LIMITS.max_batch_steps
            assert piece.cells <= piece.weights.max_cells
            assert piece.weights.cost.seconds(piece.steps, piece.cells) <= budget * (1 + 1e-9)
        seconds = piece.weights.cost.seconds(piece.steps, piece.cells)
        if seconds > LIMITS.grain_seconds * (1 + 1e-9):
            assert piece.cells >= (1 - LIMITS.max_padding) * piece.steps * wide - 1e-9, "no thinner than it may be"

    def see(self, member):
        sequence, expected = member.sequence, self.of(member.sequence)
        first = not expected.ran
        assert not expected.gone
        assert all(member not in other.members for other in self.in_flight[:-1])
        assert all(sequence is not one.sequence for other in self.in_flight[:-1] for one in other.members)
        rows = [int(row) for part in member.parts for row in part[:, 0]]
        assert len(rows) == member.steps
        assert member.first_step == sum(isinstance(event, int) for event in expected.ran)
        fresh_start = first and member.initial_state is not None
        assert not fresh_start or member.fresh
        events = ["reset"] * (member.fresh and not fresh_start) + rows
        events += ["empty"] * (not rows and member.answers) + ["end"] * member.final
        expected.ran += events
        assert expected.ran == expected.pushed[: len(expected.ran)], "every step once, in order"
        interval = sequence.snapshot_interval
        if interval and rows:
            assert rows[0] // interval == rows[-1] // interval, "no member runs beyond a snapshot"
            assert member.snapshot == ((rows[-1] + 1) % interval == 0)
        else:
            assert not member.snapshot
        if not member.final:
            assert sequence.weights.slots.check(sequence.slot) >= 2
        steps = member.steps
        while expected.chunks and expected.chunks[0] <= steps:
            steps -= expected.chunks.pop(0)
            if not steps:
                break
        if steps:
            expected.chunks[0] -= steps

    def of(self, sequence):
        return next(each for each in self.known if each.sequence is sequence)

    def is_over(self, expected):
        return expected.gone or (expected.ran[-1:] == ["end"] and not expected.sequence.in_flight)

    def lose(self, expected):
        if not self.is_over(expected):
            expected.gone = True
            expected.chunks = []

    def totals(self):
        return self.scheduler.waiting_steps, self.scheduler.waiting_bytes, self.scheduler.queued

    @invariant()
    def counters_are_exact(self):
        steps = sum(sum(each.chunks) for each in self.known if not each.gone)
        assert self.scheduler.waiting_steps == steps
        assert self.scheduler.waiting_bytes == 16 * steps
        for op in (Op.STREAM, Op.INFER):
            waiting = [
                each
                for each in self.known
                if each.sequence.op is op
                and not each.gone
                and not each.sequence.in_flight
                and len(each.ran) < len(each.pushed)
            ]
            assert self.scheduler.items[op] == len(waiting)

    @invariant()
    def each_slot_has_one_owner(self):
        for weights in self.weights:
            slots = [each.sequence.slot for each in self.known if each.sequence.weights is weights]
            indices = [weights.slots.check(slot) for slot in slots if slot is not None]
            assert len(indices) == len(set(indices)) == weights.slots.in_use
            assert not set(indices) & set(weights.slots.free)

    @invariant()
    def what_is_in_flight_keeps_its_slot(self):
        for piece in self.in_flight:
            for member in piece.members:
                if not member.final or member.sequence.slot is not None:
                    piece.weights.slots.check(member.sequence.slot)

    def teardown(self):
        for piece in self.in_flight:
            self.scheduler.complete(piece, 0.01, self.now)
        self.in_flight = []
        while (piece := self.scheduler.next_work(self.now)) is not None:
            self.in_flight = [piece]
            for member in piece.members:
                self.see(member)
            self.scheduler.complete(piece, 0.01, self.now)
        self.in_flight = []
        assert self.totals() == (0, 0, 0)
        for each in self.known:
            assert each.gone or each.ran == each.pushed
            self.scheduler.cancel(each.sequence)
            assert not each.sequence.chunks
        assert all(not weights.slots.in_use for weights in self.weights)
        assert self.scheduler.next_deadline() is None


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
