"""Decides what the device runs next: pure bookkeeping, in which time is an argument.

Work-conserving: `next_work` takes what is there, or half of it (engine/lockstep.py), and never waits for more. Live
frames come first, then whole sequences, then training, each class with a share of the device that it cannot be starved
of. Within a class models take turns, and what a slice has cut goes behind what waits, so that each sequence is at most
a queue's length of slices away.
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

_BULK_PART = 0.75  # of the queue's bounds; the rest is for live frames, which a flood of other work must not shut out

Queue = OrderedDict[Sequence, None]


class Scheduler:
    """The sequences that have something to run, and what is in flight. Its owner holds a lock around it.

    items: per class, the sequences or training calls that wait. training: what waits of that class. live_sessions: how
    many are open; its owner counts them here.
    """

    def __init__(self, limits: SchedulerLimits) -> None:
        self._limits = limits
        # per class, the versions of weights in the order in which they were last served
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
        """Sequences that wait."""
        return self.items[Op.STREAM] + self.items[Op.INFER]

    def push(self, sequence: Sequence, chunks: list[Chunk], now: float) -> None:
        """Adds chunks behind those that wait; a sequence that is over takes nothing more.

        Raises ServerError, and then nothing was added: OVERLOADED, or OVER_LIMIT for what the queue could never take.
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
        """Takes the sequence out, whatever its stage; what it has in flight runs on and is dropped."""
        sequence.dropped = True  # also where its last outputs are on their way back
        if sequence.over:
            return
        self._end(sequence)
        if not sequence.in_flight:
            self._dequeue(sequence)
            self._release(sequence)

    def expire(self, now: float) -> list[Sequence]:
        """Takes out and returns those whose deadline has passed: whole sequences, and sessions of which nothing ran."""
        expired = self._deadlines.passed(now)
        for sequence in expired:
            self.cancel(sequence)
        return expired

    def next_deadline(self) -> float | None:
        """When expire() has something to do next."""
        deadlines = [self._deadlines.next(), self.training.next_deadline()]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def next_work(self, now: float) -> Slice | TrainingBatch | None:
        """Returns what to run now, marked as in flight, or None where nothing waits. Of a batch one piece is to run."""
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
        """A piece of the training batch has run; finished: it was the last."""
        self._lockstep.ended(now)
        if finished:
            self.training.complete()
        self._shares.account({Op.TRAIN: seconds}, self._waiting())

    def _waiting(self) -> list[Op]:
        """The classes that have something to run, most urgent first."""
        return [op for op in Op if self._queues[op] or (op is Op.TRAIN and self.training.waiting)]

    def complete(self, slice_: Slice, seconds: float, now: float, *, failed: bool = False) -> None:
        """Takes the slice back after it ran; its members queue again where they have more to run.

        failed: their states are lost, and all of them end.
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
                f"the sequence has {whole} steps: a bidirectional model runs it at once, of at most "
                f"{limits.max_batch_steps} (max_batch_steps)",
            )
        part = 1.0 if sequence.op is Op.STREAM else _BULK_PART
        for what, wanted, most in (
            ("steps", count, part * limits.max_queue_steps),
            ("bytes", size, part * limits.max_queue_bytes),
        ):
            if wanted > most:
                raise ServerError(Reason.OVER_LIMIT, f"{wanted} {what} come at once: at most {most:.0f} may ever wait")
        joins = not sequence.chunks and not sequence.in_flight
        if (
            self.waiting_steps + count > part * limits.max_queue_steps
            or self.waiting_bytes + size > part * limits.max_queue_bytes
            or (joins and self.queued >= part * limits.max_queue_items)
        ):
            # a repeat may succeed when about half of what waits has run
            seconds = sequence.weights.cost.seconds(1, self.waiting_steps) / 2
            raise overloaded(
                f"the queue is full: {self.queued} items, {self.waiting_steps} steps, {self.waiting_bytes} bytes wait",
                min(max(seconds, 0.05), 5.0),
            )

    def _join(self, slice_: Slice, queue: Queue, now: float) -> None:
        """Moves sequences from the queue into the slice, as many and as far as it has room."""
        limits = self._limits
        seconds = limits.slice_seconds if self.live_sessions else limits.bulk_slice_seconds
        candidates = list(itertools.islice(queue, limits.max_batch_sequences - len(slice_.members)))
        lengths = np.fromiter(
            (step_split.runnable(sequence, limits.max_batch_steps) for sequence in candidates),
            np.int64,
            len(candidates),
        )
        if self._lockstep.found(slice_, candidates, lengths, now):
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
        """Nothing more of the sequence will run."""
        sequence.over = True
        self._deadlines.forget(sequence)
        self.waiting_bytes -= sum(chunk.rows[chunk.taken :].nbytes for chunk in sequence.chunks)
        self.waiting_steps -= sequence.waiting_steps
        sequence.waiting_steps = 0
        sequence.chunks.clear()

    def _release(self, sequence: Sequence) -> None:
        """The one path on which a slot goes back."""
        if sequence.slot is not None:
            sequence.weights.slots.release(sequence.slot)
            sequence.slot = None
