"""The scheduler: queues sequences, and forms the next slice or training batch. Time is an argument.

Work-conserving: `next_work` takes the work that is queued, or half of it (lockstep.py), and never waits for more. Live
sessions that keep the rate that they were promised go first. Then the classes have shares of device time: the other
live sessions, then whole sequences, then training. Within a class callers take turns (fair_queue.py). Whole sequences
are admitted if they can end in time (engine/admission); live sessions that are cut queue again behind their caller's
other ones.
"""

import itertools
from collections.abc import Set

from seqloom_server.engine.admission import session_rate
from seqloom_server.engine.admission.queue_bounds import QueueBounds
from seqloom_server.engine.admission.whole_sequences import Admission
from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.sequence import Chunk, Member, Op, Sequence, Slice
from seqloom_server.engine.core.training_job import TrainingBatch
from seqloom_server.engine.scheduling import step_split
from seqloom_server.engine.scheduling.deadlines import Deadlines
from seqloom_server.engine.scheduling.fair_queue import FairQueue
from seqloom_server.engine.scheduling.fair_shares import FairShares
from seqloom_server.engine.scheduling.lockstep import Lockstep
from seqloom_server.engine.scheduling.slice_forming import SliceForming
from seqloom_server.engine.scheduling.training_queue import TrainingQueue

_QUANTUM = 0.25  # of a slice's time, that each caller gets in a round


class Scheduler:
    """The queues of sequences and the training queue. Callers hold a lock around it.

    training: the training queue. live_sessions: the number of open ones, counted by the engine.
    """

    def __init__(self, limits: SchedulerLimits) -> None:
        self._limits = limits
        quantum = _QUANTUM * limits.slice_seconds
        self._on_rate, self._elastic, self._whole = FairQueue(quantum), FairQueue(quantum), FairQueue(quantum)
        self._turns = itertools.count()  # of live sessions
        self._admission = Admission(limits)
        self._bounds = QueueBounds(limits)
        self._deadlines: Deadlines[Sequence] = Deadlines()
        self._doomed: list[Sequence] = []
        self._shares = FairShares(limits.shares, limits.slice_seconds)
        self._lockstep = Lockstep(limits.halved)
        self._forming = SliceForming(limits, self._whole, self._admission, self._lockstep)
        self.training = TrainingQueue(limits, self._bounds.items)
        self.live_sessions = 0

    @property
    def items(self) -> dict[Op, int]:
        """Per class, the number of queued sequences or training calls."""
        return self._bounds.items

    @property
    def queued(self) -> int:
        """The number of queued sequences."""
        return self._bounds.queued

    @property
    def waiting_steps(self) -> int:
        """The steps of sequences that have not been taken into a slice."""
        return self._bounds.steps

    @property
    def waiting_bytes(self) -> int:
        """The bytes of these steps' frames."""
        return self._bounds.bytes

    def refuses(self, now: float) -> bool:
        """Whether a whole sequence was refused in the last second. Needs no lock."""
        return self._admission.refuses(now)

    def check(self, sequence: Sequence, steps: int, now: float) -> None:
        """Raises ServerError OVERLOADED if a whole sequence would be refused; it is not admitted otherwise."""
        self._admission.check(sequence, steps, self._slice_seconds, now)

    def reserve(self, sequence: Sequence, now: float) -> None:
        """Admits a whole sequence that has said its length, before its frames come. Raises ServerError OVERLOADED."""
        self._admission.admit(sequence, sequence.total_steps, self._slice_seconds, now, announced=True)
        self._deadlines.watch(sequence)

    def push(self, sequence: Sequence, chunks: list[Chunk], now: float) -> None:
        """Queues chunks of a sequence, unless it is over.

        Raises ServerError, and then adds nothing: OVERLOADED, or OVER_LIMIT for more than the queue could ever hold.
        """
        if sequence.over or not chunks:
            return
        count = size = 0
        for chunk in chunks:
            count += chunk.cells
            size += chunk.rows.nbytes if chunk.work is None else chunk.waiting_bytes
        self._bounds.check(sequence, count, size)
        live = sequence.op is Op.STREAM
        if live:
            sequence.lane = (sequence.caller, False)
        else:
            if sequence.admitted is None:
                self._admission.admit(sequence, count, self._slice_seconds, now)
            if not sequence.weights.whole_only:
                self._admission.arrived(sequence, count, now)
            elif chunks[-1].last:  # until then it keeps nobody waiting
                self._admission.arrived(sequence, sequence.waiting_steps + count, now)
        sequence.waiting_steps += count
        sequence.last_active = now
        joins = not sequence.in_flight and sequence.place is None
        sequence.chunks.extend(chunks)
        joins = joins and sequence.ready
        if joins:
            self._enqueue(sequence, now)
        elif (
            sequence.rate
            and sequence.place is not None
            and not sequence.on_rate
            and session_rate.is_kept(sequence, now)
        ):
            self._queue_of(sequence).remove(sequence)  # it is within its rate again
            self._enqueue(sequence, now)
        self._bounds.count(sequence, int(joins), count, size)
        if not live or not sequence.started:
            self._deadlines.watch(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Removes a sequence at any stage; its part of a slice in flight runs on and is dropped."""
        sequence.dropped = True  # also if its last outputs are being delivered
        if sequence.over:
            return
        self._end(sequence)
        if not sequence.in_flight:
            if self._queue_of(sequence).remove(sequence):
                self._bounds.count(sequence, -1, 0, 0)
            self._release(sequence)

    def pace(self, now: float) -> float:
        """Returns the seconds that a second of slices takes, as was expected of them. Needs no lock."""
        return self._admission.pace(now)

    def has_waited(self, sequence: Sequence, now: float) -> bool:
        """Whether a whole sequence has been there for longer than max_queue_seconds. Needs no lock."""
        return self._admission.has_waited(sequence, now)

    def expire(self, now: float) -> list[Sequence]:
        """Removes and returns the sequences that cannot end by their deadline any more, and sessions that never ran.

        That is: whose deadline has passed, and those that `next_work` would have taken.
        """
        expired, self._doomed = self._doomed, []
        for sequence in self._deadlines.passed(now):
            self.cancel(sequence)
            expired.append(sequence)
        return expired

    def next_deadline(self) -> float | None:
        """Returns the earliest deadline in the queues, or None."""
        deadlines = [self._deadlines.next(), self.training.next_deadline()]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def next_work(self, now: float) -> Slice | TrainingBatch | None:
        """Returns the slice to run, or the training batch to run one piece of, or None if the queues are empty."""
        while True:
            first = self._on_rate
            if not len(first):
                op = self._shares.choose(self._waiting())
                if op is Op.TRAIN:
                    return self.training.next(now)
                first = self._elastic if op is Op.STREAM else self._whole
            weights = first.next_weights()
            if weights is None:
                return None
            slice_ = Slice(weights, [], 0, 0)
            progress = self._join(slice_, first, now)
            for queue in (self._on_rate, self._elastic, self._whole):
                if queue is not first and len(queue):
                    self._join(slice_, queue, now)
            assert progress, "a queue that is not empty gave nothing to an empty slice"
            if slice_.members:  # else all that it found is too late
                self._lockstep.begun(slice_)
                self._admission.launched(slice_, now)
                return slice_

    def advanced(self, seconds: float, now: float, *, finished: bool, failed: bool = False) -> None:
        """Accounts for a piece of the training batch that has run. finished: whether it was the last."""
        self._lockstep.ended(now)
        if finished:
            if not failed:
                self.training.observe(now)
            self.training.complete()
        self._shares.account({Op.TRAIN: seconds}, self._waiting())

    def _waiting(self) -> list[Op]:
        """Returns the classes that have work and a share, most urgent first."""
        waiting = []
        if len(self._elastic):
            waiting.append(Op.STREAM)
        if len(self._whole):
            waiting.append(Op.INFER)
        if self.training.waiting:
            waiting.append(Op.TRAIN)
        return waiting

    def hold_state(self, sequence: Sequence) -> None:
        """Takes a slot for a sequence that had all of its steps in one slice, and is to run them in several."""
        if sequence.slot is None:
            sequence.slot = sequence.weights.slots.take()

    def complete(
        self,
        slice_: Slice,
        seconds: float,
        now: float,
        *,
        failed: bool = False,
        lost: Set[Sequence] | None = None,
    ) -> None:
        """Completes a slice that has run; members that have more to run queue again.

        failed: the members' states are lost, and all of them end. lost: of a slice that was run in parts, the sequences
        that end; nothing is learned from how long it took.
        """
        used = dict.fromkeys(Op, 0.0)
        for member in slice_.members:
            sequence = member.sequence
            if not sequence.on_rate:  # what was promised is not part of any share
                used[sequence.op] += seconds * (
                    member.cells / slice_.cells if slice_.cells else 1 / len(slice_.members)
                )
            sequence.in_flight = False
            sequence.last_active = now
            sequence.compute_seconds += seconds
            if member.final or failed or (lost is not None and sequence in lost):
                self._end(sequence)
            if sequence.over:
                self._release(sequence)
            elif sequence.ready:
                self._enqueue(sequence, now)
                self._bounds.count(sequence, 1, 0, 0)
        self._shares.account(used, self._waiting())
        self._lockstep.ended(now)
        self._admission.completed(slice_, seconds, now, failed=failed or lost is not None)

    @property
    def _slice_seconds(self) -> float:
        """The seconds that a slice may take."""
        return self._limits.slice_seconds if self.live_sessions else self._limits.bulk_slice_seconds

    def _join(self, slice_: Slice, queue: FairQueue, now: float) -> bool:
        """Moves what fits from the queue into the slice; returns whether anything was moved, or was too late."""
        joining = self._forming.join(slice_, queue, self._slice_seconds, now)
        for sequence in joining.late:
            self.cancel(sequence)
        self._doomed += joining.late
        if joining.sequences:
            members = [
                self._take(slice_, sequence, steps, now)
                for sequence, steps in zip(joining.sequences, joining.steps, strict=True)
            ]
            queue.take(joining.sequences, [member.cells for member in members])
        return bool(joining.sequences or joining.late)

    def _take(self, slice_: Slice, sequence: Sequence, cut: int, now: float) -> Member:
        """Moves up to `cut` steps of a sequence that was queued into the slice, as a member."""
        member = step_split.take(sequence, cut, now)
        sequence.in_flight = True
        if sequence.slot is None:
            slots = sequence.weights.slots
            if sequence.group is not None:
                sequence.slot = slots.take_block(sequence.group.count)
            elif not member.final:
                sequence.slot = slots.take()
        if sequence.op is Op.STREAM:
            self._deadlines.forget(sequence)
            session_rate.charge(sequence, member.cells / sequence.width, now)
        else:
            member.expected = self._admission.backlog.take(sequence, member.steps)
        size = sum([part.nbytes for part in member.parts]) + member.change_bytes
        self._bounds.count(sequence, -1, -member.cells, -size)
        slice_.members.append(member)
        slice_.steps, slice_.cells = max(slice_.steps, member.steps), slice_.cells + member.cells
        return member

    def _enqueue(self, sequence: Sequence, now: float) -> None:
        if sequence.op is Op.STREAM:
            sequence.on_rate = session_rate.is_kept(sequence, now)
            self._queue_of(sequence).add(sequence, next(self._turns))
        else:
            self._whole.add(sequence, self._admission.due(sequence), begun=sequence.started)

    def _queue_of(self, sequence: Sequence) -> FairQueue:
        if sequence.op is Op.INFER:
            return self._whole
        return self._on_rate if sequence.on_rate else self._elastic

    def _end(self, sequence: Sequence) -> None:
        """Marks a sequence as over and drops its queued chunks."""
        sequence.over = True
        self._deadlines.forget(sequence)
        self._admission.backlog.take(sequence, sequence.expected_steps)
        self._admission.backlog.release(sequence)
        if not sequence.chunks:
            return
        size = sum([chunk.waiting_bytes for chunk in sequence.chunks])
        self._bounds.count(sequence, 0, -sequence.waiting_steps, -size)
        sequence.waiting_steps = 0
        sequence.chunks.clear()

    def _release(self, sequence: Sequence) -> None:
        """Releases the sequence's slot; the only place that does."""
        if sequence.slot is not None:
            sequence.weights.slots.release(sequence.slot)
            sequence.slot = None
