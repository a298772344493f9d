"""The scheduler against a plain model of it: anything may come, end, fail or be cancelled at any time."""

import dataclasses
import math

import numpy as np
from helpers.simulated_device import KnownWeights, make_sequence
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from seqloom_server.engine.admission.caller_share import admits
from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.sequence import Chunk, Op
from seqloom_server.engine.scheduling.scheduler import Scheduler
from seqloom_server.errors import Overload, Reason, ServerError

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
SLOWEST, FASTEST = 20.0, 0.2  # that work is taken to go, as a part of what its cost says
MARGIN = 0.2  # of the time that a whole sequence has
BURST = 1.0  # seconds of frames that may come sooner than a rate says
CALLERS = ("a", "b")


class Expected:
    """What one sequence must go through, event by event, and what of it has been seen in slices."""

    def __init__(self, sequence):
        self.sequence = sequence
        self.pushed = []
        self.ran = []
        self.chunks = []  # [steps not yet taken, bytes of one] of each chunk that waits
        self.closed = False
        self.gone = False  # cancelled, failed, refused or expired
        self.watched = False  # its deadline
        self.steps = 0  # expected: waiting
        self.reserved = 0  # said, until they come or are given up
        self.admitted = None
        self.paid_until = 0.0
        self.on_rate = False

    @property
    def waits(self):
        """Whether it is in the queue."""
        return not self.gone and not self.sequence.in_flight and len(self.ran) < len(self.pushed)


class SchedulerMachine(RuleBasedStateMachine):
    sequences = Bundle("sequences")
    slices = Bundle("slices")

    def __init__(self):
        super().__init__()
        self.weights = [KnownWeights("a"), KnownWeights("b", max_cells=7)]
        self.now = 0.0
        self.known = []
        self.in_flight = []
        self.promised = 0.0  # seconds of the slices since the device was free, if all goes as slowly as it may

    @initialize(most=st.sampled_from([0.5, 10.0, 1e9]))
    def start(self, most):
        self.most_seconds = most
        self.scheduler = Scheduler(dataclasses.replace(LIMITS, max_queue_seconds=most))

    @rule(
        target=sequences,
        op=st.sampled_from([Op.STREAM, Op.INFER]),
        weights=st.integers(0, 1),
        caller=st.sampled_from(CALLERS),
        timeout=st.none() | st.floats(0, 5),
        interval=st.sampled_from([0, 0, 1, 3, 10]),
        rate=st.sampled_from([0, 0, 20.0, 1e-300]),
        total=st.sampled_from([0, 0, 1, 40, 90, 2000]),
    )
    def open(self, op, weights, caller, timeout, interval, rate, total):
        whole = op is Op.INFER
        sequence = make_sequence(
            self.weights[weights],
            op,
            initial_state=(),
            deadline=None if timeout is None else self.now + timeout,
            snapshot_interval=interval,
            caller=caller,
            rate=0.0 if whole else rate,
            total_steps=total if whole else 0,
        )
        expected = Expected(sequence)
        if sequence.total_steps:
            before = self.totals()
            try:
                self.scheduler.reserve(sequence, self.now)
            except ServerError as error:
                self.check_prediction(expected, total, error)
                assert self.totals() == before
                return multiple()  # the engine never knew it
            self.check_prediction(expected, total, None)
            expected.watched, expected.reserved, expected.admitted = True, total, self.now
        self.known.append(expected)
        return expected

    def check_prediction(self, expected, steps, refusal):
        """A whole sequence was admitted or refused: allowed only within what is simple to say of what was predicted."""
        sequence, steps = expected.sequence, max(steps, 1)
        cost = sequence.weights.cost
        left = math.inf if sequence.deadline is None else sequence.deadline - self.now
        before = [
            each for each in self.known if (each.steps or each.reserved) and not each.gone and each is not expected
        ]
        if refusal is None:
            alone = self.in_flight and not before
            assert not (alone and left > 0 and FASTEST * cost.seconds(steps, steps) > left), "it cannot be in time"
            return
        assert (refusal.reason, refusal.cause) == (Reason.OVERLOADED, Overload.TOO_LATE)
        assert refusal.retry_after > 0
        assert left > 0
        assert before or self.in_flight or not math.isinf(left), "nothing was there, and it has all the time"
        queue = sum((each.steps + each.reserved) * each.sequence.weights.cost.cell_seconds(64) for each in before)
        wait = self.promised + SLOWEST * queue
        done = wait + SLOWEST * cost.seconds(steps, 64 * steps if before or self.in_flight else steps)
        assert done > left * (1 - MARGIN) or wait > self.most_seconds, "there was time enough"

    @rule(
        expected=sequences,
        sizes=st.lists(st.integers(0, 30), min_size=1, max_size=3),
        reset=st.booleans(),
        last=st.booleans(),
        silent=st.booleans(),
        asks=st.booleans(),
    )
    def push(self, expected, sizes, reset, last, silent, asks):
        if expected.closed:
            return
        first = len([event for event in expected.pushed if isinstance(event, int)])
        chunks, events = [], []
        for number, size in enumerate(sizes):
            rows = np.arange(first, first + size, dtype="f8").repeat(2).reshape(size, 2)
            first += size
            chunk = Chunk(rows, self.now, reset=reset and not number, last=last and number == len(sizes) - 1)
            chunk.asks = asks and number != 1 and expected.sequence.op is Op.STREAM
            chunk.silent = silent and not size and (chunk.reset or chunk.last or chunk.asks)
            chunks.append(chunk)
            events += ["reset"] * chunk.reset + rows[:, 0].astype(int).tolist()
            events += ["empty"] * (not size and not chunk.silent) + ["ask"] * chunk.asks + ["end"] * chunk.last
        before, sequence, count = self.totals(), expected.sequence, sum(sizes)
        joins = not sequence.in_flight and len(expected.ran) == len(expected.pushed)
        full = not self.has_room(sequence, [int(joins), count, 16 * count])
        refusal = None
        try:
            self.scheduler.push(sequence, chunks, self.now)
        except ServerError as error:
            refusal = error
        if expected.gone:
            assert refusal is None
            expected.closed = last
            return
        assert refusal is not None or not full
        if full:
            assert (refusal.reason, refusal.cause) == (Reason.OVERLOADED, Overload.QUEUE_FULL)
            assert refusal.retry_after > 0
        elif sequence.op is Op.INFER and expected.admitted is None:
            self.check_prediction(expected, count, refusal)
        else:
            assert refusal is None
        if refusal is not None:
            assert self.totals() == before
            self.cancel(expected)  # as the engine does
            expected.closed = True
            return
        expected.pushed += events
        expected.chunks += [len(chunk.rows) for chunk in chunks]
        expected.closed, expected.watched = last, True
        if sequence.op is Op.INFER:
            expected.steps = sum(expected.chunks)
            expected.reserved = max(0, expected.reserved - count)
            expected.admitted = self.now if expected.admitted is None else expected.admitted
        if joins or (expected.waits and not expected.on_rate):
            self.enters(expected)

    def has_room(self, sequence, added):
        """Whether the bounds on the queue, and the caller's parts of them, let in so many items, steps and bytes."""
        limits = [LIMITS.max_queue_items, LIMITS.max_queue_steps, LIMITS.max_queue_bytes]
        part = 1 if sequence.op is Op.STREAM else 0.75
        own, used = self.held_by(sequence.caller), [self.held_by(caller) for caller in CALLERS]
        return all(
            not more or admits(own[n], sum(each[n] for each in used), part * limits[n], more)
            for n, more in enumerate(added)
        )

    def held_by(self, caller):
        """Returns the items, steps and bytes that a caller has in the queue."""
        mine = [each for each in self.known if each.sequence.caller == caller and not each.gone]
        steps = sum(sum(each.chunks) for each in mine)
        return [sum(each.waits for each in mine), steps, 16 * steps]

    def enters(self, expected):
        """A sequence enters the queue: it is on its rate, or behind those that are."""
        expected.on_rate = expected.sequence.rate > 0 and expected.paid_until <= self.now + BURST

    @rule(expected=sequences)
    def cancel(self, expected):
        self.scheduler.cancel(expected.sequence)
        self.lose(expected)

    @rule(seconds=st.floats(0, 3))
    def pass_time(self, seconds):
        self.now += seconds
        due = self.due()
        assert set(self.scheduler.expire(self.now)) == due
        for each in self.known:
            if each.sequence in due:
                self.lose(each)

    def due(self):
        """Returns the sequences whose deadline has passed in the queue."""
        return {
            each.sequence
            for each in self.known
            if each.watched
            and not self.is_over(each)
            and each.sequence.deadline is not None
            and each.sequence.deadline <= self.now
            and (each.sequence.op is not Op.STREAM or not each.sequence.started)
        }

    @rule(count=st.integers(0, 1))
    def live_sessions(self, count):
        self.scheduler.live_sessions = count

    @precondition(lambda self: len(self.in_flight) < 3)
    @rule(target=slices)
    def take(self):
        due, ratio = self.due(), self.scheduler._admission._pace.ratio(self.now)
        waiting = {each for each in self.known if each.waits}
        piece = self.scheduler.next_work(self.now)
        dropped = set(self.scheduler.expire(self.now))  # as the device thread does
        in_piece = set() if piece is None else {self.of(member.sequence) for member in piece.members}
        for sequence in dropped - due:
            self.check_dropped(sequence, ratio)
        for each in self.known:
            # what was due may have been taken: the device thread looks at deadlines first
            if each.sequence in dropped and each not in in_piece:
                self.lose(each)
        if piece is None:
            assert all(each.gone for each in waiting), "work-conserving: a slice whenever something waits"
            return None
        self.in_flight.append(piece)
        self.promised += SLOWEST * piece.weights.cost.seconds(piece.steps, piece.cells)
        self.check_bounds(piece)
        if any(each.on_rate for each in waiting):
            assert self.of(piece.members[0].sequence).on_rate, "those that keep their rate go first"
        for member in piece.members:
            self.see(member)
        for each in in_piece:
            if each.sequence in dropped:
                self.lose(each)
        return piece

    def check_dropped(self, sequence, ratio):
        """Dropped before its deadline: only what could not be in time any more, or has waited for too long."""
        expected = self.of(sequence)
        assert sequence.op is Op.INFER
        assert not expected.gone
        if not expected.ran and self.now > expected.admitted + self.most_seconds:
            return
        assert sequence.deadline is not None
        ran = sum(isinstance(event, int) for event in expected.ran)
        steps, cost = max(sum(expected.chunks), sequence.total_steps - ran), sequence.weights.cost
        budget = max(self.slice_seconds, 2 * cost.seconds(1, 1))
        in_one_piece = not sequence.snapshot_interval and not {"reset", "empty"} & set(expected.pushed)
        needs = max(budget, cost.seconds(steps, steps * LIMITS.max_batch_sequences)) if in_one_piece else budget * steps
        assert (sequence.deadline - self.now) * (1 - MARGIN) <= ratio * needs * (1 + 1e-9)

    @property
    def slice_seconds(self):
        return LIMITS.slice_seconds if self.scheduler.live_sessions else LIMITS.bulk_slice_seconds

    @rule(piece=consumes(slices), seconds=st.floats(0, 0.2), failed=st.booleans())
    def complete(self, piece, seconds, failed):
        if piece is None:
            return
        self.in_flight.remove(piece)
        self.now += seconds
        self.scheduler.complete(piece, seconds, self.now, failed=failed)
        if not self.in_flight:
            self.promised = 0.0
        for member in piece.members:
            expected = self.of(member.sequence)
            if expected.waits:
                self.enters(expected)
            if failed or member.final:
                expected.steps = expected.reserved = 0
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
        budget = max(self.slice_seconds, 2 * piece.weights.cost.seconds(1, 1))
        if piece.cells > 1:  # a slice of one step is as small as they come
            assert piece.steps * wide <= LIMITS.max_batch_steps
            assert piece.cells <= piece.weights.max_cells
            assert piece.weights.cost.seconds(piece.steps, piece.cells) <= budget * (1 + 1e-9)
        seconds = piece.weights.cost.seconds(piece.steps, piece.cells)
        if seconds > LIMITS.grain_seconds * (1 + 1e-9):
            # more, to bring a caller's sequence to its end, while there are others, or it has long and short ones
            shared = len({each.sequence.lane for each in self.known if each.admitted is not None}) > 1
            padding = (2 if shared else 1) * LIMITS.max_padding
            assert piece.cells >= (1 - padding) * piece.steps * wide - 1e-9, "no thinner than it may be"

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
        events += ["empty"] * (not rows and member.answers) + ["ask"] * member.asks + ["end"] * member.final
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
        if sequence.op is Op.INFER:
            expected.steps -= steps
        elif sequence.rate:
            expected.paid_until = max(expected.paid_until, self.now) + steps / sequence.rate
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
            expected.steps = expected.reserved = 0

    def totals(self):
        return self.scheduler.waiting_steps, self.scheduler.waiting_bytes, self.scheduler.queued

    @invariant()
    def counters_are_exact(self):
        steps = sum(sum(each.chunks) for each in self.known if not each.gone)
        assert self.scheduler.waiting_steps == steps
        assert self.scheduler.waiting_bytes == 16 * steps
        for op in (Op.STREAM, Op.INFER):
            assert self.scheduler.items[op] == sum(each.waits for each in self.known if each.sequence.op is op)
        held = {caller: self.held_by(caller) for caller in CALLERS}
        assert self.scheduler._bounds._callers == {caller: own for caller, own in held.items() if any(own)}

    @invariant()
    def what_is_expected_is_exact(self):
        backlog, whole = self.scheduler._admission.backlog, [each for each in self.known if each.steps]
        assert [each.steps for each in whole] == [each.sequence.expected_steps for each in whole]
        assert backlog.sequences == len(whole)
        seconds = sum(each.steps * each.sequence.weights.cost.cell_seconds(64) for each in whole)
        assert math.isclose(backlog.seconds, seconds, abs_tol=1e-9)
        said = {each.sequence.lane for each in self.known if each.reserved}  # or was, not long ago
        assert (
            {each.sequence.lane for each in whole}
            <= set(backlog._lanes)
            <= {each.sequence.lane for each in whole} | said
        )
        assert backlog.seconds == 0 or whole, "no rounding errors are kept"

    @invariant()
    def rates_are_kept_account_of(self):
        for each in self.known:
            if each.sequence.rate:
                assert each.sequence.paid_until == each.paid_until
                assert each.sequence.on_rate == each.on_rate or not each.waits

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
        if not hasattr(self, "scheduler"):
            return
        for piece in list(self.in_flight):
            self.complete(piece, 0.01, failed=False)
        while (piece := self.take()) is not None:
            self.complete(piece, 0.01, failed=False)
        assert self.totals() == (0, 0, 0)
        for each in self.known:
            assert each.gone or each.ran == each.pushed
            self.scheduler.cancel(each.sequence)
            self.lose(each)
            assert not each.sequence.chunks
        self.what_is_expected_is_exact()
        assert self.scheduler._admission.backlog.seconds == 0
        assert not self.scheduler._bounds._callers
        assert all(not weights.slots.in_use for weights in self.weights)
        assert self.scheduler.next_deadline() is None
        assert self.scheduler.expire(math.inf) == []


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
