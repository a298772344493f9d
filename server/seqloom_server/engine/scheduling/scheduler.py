"""The scheduler: queues sequences, and forms the next slice or training batch. Time is an argument.

Work-conserving: `next_work` takes the work that is queued, or half of it (lockstep.py), and never waits for more. Live
frames go first, then whole sequences, then training; each class has a guaranteed share of device time. Within a class
models take turns, and a sequence that was cut queues again at the end, so that each waits for at most as many slices as
there are sequences in the queue.
"""

import itertools
from collections import OrderedDict

import numpy as np

from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.overload import overloaded
from seqloom_server.engine.core.sequence import Chunk, Op, Sequence, Slice, Weights
from seqloom_server.engine.core.training_job import TrainingBatch
from seqloom_server.engine.scheduling import step_split
from seqloom_server.engine.scheduling.deadlines import Deadlines
from seqloom_server.engine.scheduling.fair_shares import FairShares
from seqloom_server.engine.scheduling.lockstep import Lockstep
from seqloom_server.engine.scheduling.slice_fit import SliceFit
from seqloom_server.engine.scheduling.training_queue import TrainingQueue
from seqloom_server.errors import Reason, ServerError

_WHOLE_SEQUENCES_PART = 0.75  # of the queue's bounds; the rest is reserved for live frames

Queue = OrderedDict[Sequence, None]


class Scheduler:
    """The queues of sequences and the training queue. Callers hold a lock around it.

    items: per class, the number of queued sequences or training calls. training: the training queue. live_sessions: the
    number of open ones, counted by the engine.
    """

    def __init__(self, limits: SchedulerLimits) -> None:
        self._limits = limits
        # per class, the versions of weights, least recently served first
        self._queues: dict[Op, OrderedDict[Weights, Queue]] = {op: OrderedDict() for op in Op}
        self._deadlines: Deadlines[Sequence] = Deadlines()
        self._shares = FairShares(limits.shares, limits.slice_seconds)
        self._lockstep = Lockstep(limits.halved)
        self.items = dict.fromkeys(Op, 0)
        self.training = TrainingQueue(limits, self.items)
        self.waiting_steps = 0
        self.waiting_bytes = 0
        self.live_sessions = 0

    @property
    def queued(self) -> int:
        """The number of queued sequences."""
        return self.items[Op.STREAM] + self.items[Op.INFER]

    def push(self, sequence: Sequence, chunks: list[Chunk], now: float) -> None:
        """Queues chunks of a sequence, unless it is over.

        Raises ServerError, and then adds nothing: OVERLOADED, or OVER_LIMIT for more than the queue could ever hold.
        """
        if sequence.over or not chunks:
            return
        count = sum(len(chunk.rows) for chunk in chunks)
        size = sum(chunk.rows.nbytes for chunk in chunks)
        self._check_bounds(sequence, count, size)
        self.waiting_steps += count
        self.waiting_bytes += size
        sequence.waiting_steps += count
        sequence.last_active = now
        idle = not sequence.ready
        sequence.chunks.extend(chunks)
        if idle and sequence.ready and not sequence.in_flight:
            self._enqueue(sequence)
        if sequence.op is not Op.STREAM or not sequence.started:
            self._deadlines.watch(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Removes a sequence at any stage; its part of a slice in flight runs on and is dropped."""
        sequence.dropped = True  # also if its last outputs are being delivered
        if sequence.over:
            return
        self._end(sequence)
        if not sequence.in_flight:
            self._dequeue(sequence)
            self._release(sequence)

    def expire(self, now: float) -> list[Sequence]:
        """Removes and returns the sequences whose deadline has passed: whole ones, and sessions that never ran."""
        expired = self._deadlines.passed(now)
        for sequence in expired:
            self.cancel(sequence)
        return expired

    def next_deadline(self) -> float | None:
        """Returns the earliest deadline in the queues, or None."""
        deadlines = [self._deadlines.next(), self.training.next_deadline()]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def next_work(self, now: float) -> Slice | TrainingBatch | None:
        """Returns the slice to run, or the training batch to run one piece of, or None if the queues are empty."""
        op = self._shares.choose(self._waiting())
        if op is None:
            return None
        if op is Op.TRAIN:
            return self.training.next(now)
        slice_ = Slice(next(iter(self._queues[op])), [], 0, 0)
        for served in (op, *(other for other in Op if other is not op)):
            if slice_.weights in self._queues[served]:
                self._queues[served].move_to_end(slice_.weights)
                self._join(slice_, self._queues[served][slice_.weights], now)
        self._lockstep.begun(slice_)
        return slice_

    def advanced(self, seconds: float, now: float, *, finished: bool) -> None:
        """Accounts for a piece of the training batch that has run. finished: whether it was the last."""
        self._lockstep.ended(now)
        if finished:
            self.training.complete()
        self._shares.account({Op.TRAIN: seconds}, self._waiting())

    def _waiting(self) -> list[Op]:
        """Returns the classes that have work, most urgent first."""
        return [op for op in Op if self._queues[op] or (op is Op.TRAIN and self.training.waiting)]

    def complete(self, slice_: Slice, seconds: float, now: float, *, failed: bool = False) -> None:
        """Completes a slice that has run; members that have more to run queue again.

        failed: the members' states are lost, and all of them end.
        """
        used = dict.fromkeys(Op, 0.0)
        for member in slice_.members:
            sequence = member.sequence
            used[sequence.op] += seconds * (member.steps / slice_.cells if slice_.cells else 1 / len(slice_.members))
            sequence.in_flight = False
            sequence.last_active = now
            sequence.compute_seconds += seconds
            if member.final or failed:
                self._end(sequence)
            if sequence.over:
                self._release(sequence)
            elif sequence.chunks:
                self._enqueue(sequence)
        self._shares.account(used, self._waiting())
        self._lockstep.ended(now)

    def _check_bounds(self, sequence: Sequence, count: int, size: int) -> None:
        limits = self._limits
        whole = sequence.waiting_steps + count
        if sequence.weights.whole_only and whole > limits.max_batch_steps:
            raise ServerError(
                Reason.OVER_LIMIT,
                f"the sequence has {whole} steps: expected at most {limits.max_batch_steps} (max_batch_steps) for a "
                "bidirectional model, which runs a sequence in one slice",
            )
        part = 1.0 if sequence.op is Op.STREAM else _WHOLE_SEQUENCES_PART
        for unit, added, most in (
            ("steps", count, part * limits.max_queue_steps),
            ("bytes", size, part * limits.max_queue_bytes),
        ):
            if added > most:
                raise ServerError(
                    Reason.OVER_LIMIT,
                    f"{added} {unit} at once: expected at most {most:.0f}, all that the queue accepts",
                )
        joins = not sequence.chunks and not sequence.in_flight
        if (
            self.waiting_steps + count > part * limits.max_queue_steps
            or self.waiting_bytes + size > part * limits.max_queue_bytes
            or (joins and self.queued >= part * limits.max_queue_items)
        ):
            # a repeat may succeed when about half of the queue has run
            seconds = sequence.weights.cost.seconds(1, self.waiting_steps) / 2
            raise overloaded(
                f"the queue is full: {self.queued} items, {self.waiting_steps} steps, {self.waiting_bytes} bytes",
                min(max(seconds, 0.05), 5.0),
            )

    def _join(self, slice_: Slice, queue: Queue, now: float) -> None:
        """Moves sequences from the queue into the slice, as many and as many of their steps as fit."""
        limits = self._limits
        seconds = limits.slice_seconds if self.live_sessions else limits.bulk_slice_seconds
        candidates = list(itertools.islice(queue, limits.max_batch_sequences - len(slice_.members)))
        lengths = np.fromiter(
            (step_split.runnable(sequence, limits.max_batch_steps) for sequence in candidates),
            np.int64,
            len(candidates),
        )
        if self._lockstep.should_halve(slice_, candidates, lengths, now):
            lengths = lengths[: len(candidates) // 2]
        count, cut = SliceFit(limits, seconds, slice_).fit(lengths)
        for sequence in candidates[:count]:
            self._dequeue(sequence)
            member = step_split.take(sequence, cut, now)
            sequence.in_flight = True
            if sequence.slot is None and not member.final:
                sequence.slot = sequence.weights.slots.take()
            if sequence.op is Op.STREAM:
                self._deadlines.forget(sequence)
            self.waiting_steps -= member.steps
            self.waiting_bytes -= sum(part.nbytes for part in member.parts)
            slice_.members.append(member)
            slice_.steps, slice_.cells = max(slice_.steps, member.steps), slice_.cells + member.steps

    def _enqueue(self, sequence: Sequence) -> None:
        self._queues[sequence.op].setdefault(sequence.weights, OrderedDict())[sequence] = None
        self.items[sequence.op] += 1

    def _dequeue(self, sequence: Sequence) -> None:
        queues = self._queues[sequence.op]
        queue = queues.get(sequence.weights)
        if queue is not None and sequence in queue:
            del queue[sequence]
            self.items[sequence.op] -= 1
            if not queue:
                del queues[sequence.weights]

    def _end(self, sequence: Sequence) -> None:
        """Marks a sequence as over and drops its queued chunks."""
        sequence.over = True
        self._deadlines.forget(sequence)
        self.waiting_bytes -= sum(chunk.rows[chunk.taken :].nbytes for chunk in sequence.chunks)
        self.waiting_steps -= sequence.waiting_steps
        sequence.waiting_steps = 0
        sequence.chunks.clear()

    def _release(self, sequence: Sequence) -> None:
        """Releases the sequence's slot; the only place that does."""
        if sequence.slot is not None:
            sequence.weights.slots.release(sequence.slot)
            sequence.slot = None
