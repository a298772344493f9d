"""Decides what the device runs next: pure bookkeeping, in which time is an argument.

Work-conserving: `next_slice` takes what is there and never waits for more. Live frames come first, then whole
sequences; each class is owed a share of the device that it cannot be starved of. Members may be cut at any step, so a
slice is bounded in cells, in predicted time and, where padding is computed, in padding.
"""

import heapq
import itertools
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from seqloom_server.engine.cost import SliceCost
from seqloom_server.engine.request import Array, Chunk, Member, Op, Sequence, Slice, Weights
from seqloom_server.errors import Reason, ServerError


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """The bounds of a slice and of the queue.

    slice_seconds holds while live sessions are open, bulk_slice_seconds while none is. max_padding: the share of a
    slice's padded cells that may be padding, where the device computes padding at all.
    """

    max_batch_sequences: int = 256
    max_batch_steps: int = 32768
    slice_seconds: float = 0.02
    bulk_slice_seconds: float = 0.2
    max_queue_items: int = 16384
    max_queue_steps: int = 2_000_000
    max_queue_bytes: int = 2 << 30
    max_padding: float = 1.0
    shares: dict[Op, float] = field(default_factory=lambda: {Op.STREAM: 0.5, Op.INFER: 0.2})


@dataclass(frozen=True, slots=True)
class Room:
    """What may still join a slice: `taken` as it stands, and the bounds it has to keep."""

    limits: SchedulerLimits
    cost: SliceCost
    seconds: float
    taken: Slice

    def fits(self, lengths: Array, steps: int) -> bool:
        """Whether members of these lengths, each cut to `steps`, may run beside what is there."""
        cells = self.taken.cells + int(np.minimum(lengths, steps).sum())
        longest = max(self.taken.steps, steps)
        padded = longest * (len(self.taken.members) + len(lengths))
        return (
            (cells if self.limits.max_padding >= 1 else padded) <= self.limits.max_batch_steps
            and self.cost.seconds(longest, cells) <= self.seconds
            and 1 - cells / padded <= self.limits.max_padding
        )

    def cut(self, lengths: Array) -> int:
        """The largest number of steps to which members of these lengths may run; at least 1, so that work goes on."""
        low, high = 1, int(lengths.max(initial=1))
        if high <= 1 or self.fits(lengths, high):
            return max(high, 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(lengths, middle) else (low, middle)
        return low


Queue = OrderedDict[Sequence, None]


class Scheduler:
    """The queue of sequences that have something to run, and what is in flight. Its owner holds a lock around it."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self._limits = limits
        # per class, the versions of weights in the order in which they were last served
        self._queues: dict[Op, OrderedDict[Weights, Queue]] = {op: OrderedDict() for op in Op}
        self._deadlines: list[tuple[float, int, Sequence]] = []
        self._credit = dict.fromkeys(Op, 0.0)
        self.items = dict.fromkeys(Op, 0)
        self.waiting_steps = 0
        self.waiting_bytes = 0
        self.live_sessions = 0  # its owner counts the open ones here

    def push(self, sequence: Sequence, chunks: list[Chunk], now: float) -> None:
        """Adds chunks behind those that wait; a sequence that is over takes nothing more.

        Raises ServerError OVERLOADED, and then nothing was added.
        """
        if sequence.over:
            return
        steps = sum(len(chunk.rows) for chunk in chunks)
        size = sum(chunk.rows.nbytes for chunk in chunks)
        limits = self._limits
        if (
            self.waiting_steps + steps > limits.max_queue_steps
            or self.waiting_bytes + size > limits.max_queue_bytes
            or (not sequence.chunks and not sequence.in_flight and self.queued >= limits.max_queue_items)
        ):
            raise ServerError(
                Reason.OVERLOADED,
                f"the queue is full: {self.queued} items, {self.waiting_steps} steps, {self.waiting_bytes} bytes wait",
                retry_after=self._drain_seconds(sequence.weights),
            )
        self.waiting_steps += steps
        self.waiting_bytes += size
        sequence.waiting_steps += steps
        sequence.last_active = now
        idle = not sequence.chunks
        sequence.chunks.extend(chunks)
        if idle and not sequence.in_flight:
            self._enqueue(sequence, front=False)
            if sequence.deadline is not None and not sequence.started:
                self._watch(sequence, sequence.deadline)

    def cancel(self, sequence: Sequence) -> None:
        """Takes the sequence out, whatever its stage; what it has in flight runs on and is dropped."""
        if sequence.over:
            return
        sequence.over = sequence.dropped = True
        self._forget_chunks(sequence)
        if not sequence.in_flight:
            self._dequeue(sequence)
            self._release(sequence)

    def expire(self, now: float) -> list[Sequence]:
        """Takes out and returns the sequences whose deadline passed while nothing of them had run."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            sequence = heapq.heappop(self._deadlines)[2]
            if not sequence.started and not sequence.over:
                self.cancel(sequence)
                expired.append(sequence)
        return expired

    @property
    def queued(self) -> int:
        return sum(self.items.values())

    def next_slice(self, now: float) -> Slice | None:
        """Returns what to run now, marked as in flight, or None where nothing waits."""
        op = self._next_op()
        if op is None:
            return None
        weights = next(iter(self._queues[op]))
        limits = self._limits
        budget = limits.slice_seconds if self.live_sessions else limits.bulk_slice_seconds
        piece = Slice(weights, [], 0, 0)
        for served in [op, *(other for other in Op if other is not op)]:
            queue = self._queues[served].get(weights)
            if not queue:
                continue
            self._queues[served].move_to_end(weights)
            candidates = list(itertools.islice(queue, limits.max_batch_sequences - len(piece.members)))
            lengths = np.array([self._runnable(sequence) for sequence in candidates])
            room = Room(limits, weights.cost, budget, piece)
            while len(lengths) and not room.fits(lengths, 1) and (piece.members or len(lengths) > 1):
                lengths = lengths[: len(lengths) // 2]
            cut = room.cut(lengths)
            for sequence in candidates[: len(lengths)]:
                member = self._take(sequence, cut, now)
                piece.steps, piece.cells = max(piece.steps, member.steps), piece.cells + member.steps
                piece.members.append(member)
                self._dequeue(sequence)
                sequence.in_flight = True
        return piece

    def complete(self, piece: Slice, seconds: float, now: float) -> None:
        """Takes the slice back after it ran (or failed): what has more to run queues again, before the newcomers
        where it was cut in the middle of a chunk."""
        for member in reversed(piece.members):
            sequence = member.sequence
            sequence.in_flight = False
            sequence.last_active = now
            sequence.compute_seconds += seconds
            if member.final:
                sequence.over = True
            if sequence.over:
                self._forget_chunks(sequence)
                self._release(sequence)
            elif sequence.chunks:
                self._enqueue(sequence, front=sequence.chunks[0].taken > 0)
        self._account(piece, seconds)

    def clear(self) -> list[Sequence]:
        """Takes out and returns everything that is queued."""
        everything = [s for queues in self._queues.values() for queue in queues.values() for s in queue]
        for sequence in everything:
            self.cancel(sequence)
        return everything

    def _next_op(self) -> Op | None:
        waiting = [op for op in Op if self._queues[op]]
        owed = [op for op in waiting if self._credit[op] >= self._limits.slice_seconds]
        return max(owed, key=self._credit.__getitem__) if owed else (waiting[0] if waiting else None)

    def _account(self, piece: Slice, seconds: float) -> None:
        """A class earns its share of the time that others used while it waited, and pays with the time it gets."""
        served = {member.sequence.op for member in piece.members}
        for op in Op:
            if op in served:
                self._credit[op] = max(0.0, self._credit[op] - seconds)
            elif self._queues[op]:
                self._credit[op] += self._limits.shares[op] * seconds
            else:
                self._credit[op] = 0.0

    @staticmethod
    def _runnable(sequence: Sequence) -> int:
        """Steps that may run in one slice: up to a reset, an empty chunk or a snapshot."""
        steps = 0
        for chunk in sequence.chunks:
            rows = len(chunk.rows) - chunk.taken
            if steps and (chunk.reset or not rows):
                break
            steps += rows
            if not rows:
                break
        if sequence.snapshot_interval:
            steps = min(steps, sequence.snapshot_interval - sequence.steps_done % sequence.snapshot_interval)
        return steps

    def _take(self, sequence: Sequence, cut: int, now: float) -> Member:
        """Moves up to `cut` steps from the sequence's chunks into a member of a slice."""
        head = sequence.chunks[0]
        fresh = not sequence.started or (head.reset and not head.taken)
        member = Member(
            sequence,
            parts=[],
            steps=0,
            first_step=sequence.steps_done,
            waited=None if head.taken else now - head.arrived,
            fresh=fresh,
            initial_state=None if head.reset else sequence.initial_state if fresh else None,
            answers=not head.silent,
            final=False,
            snapshot=False,
        )
        wanted = min(cut, self._runnable(sequence))
        while True:
            chunk = sequence.chunks[0]
            rows = chunk.rows[chunk.taken : chunk.taken + wanted - member.steps]
            if len(rows):
                member.parts.append(rows)
                member.steps += len(rows)
                chunk.taken += len(rows)
                self.waiting_bytes -= rows.nbytes
            if chunk.taken < len(chunk.rows):
                break
            sequence.chunks.popleft()
            member.final = chunk.last
            if member.steps >= wanted:
                break
        self.waiting_steps -= member.steps
        sequence.waiting_steps -= member.steps
        sequence.steps_done += member.steps
        sequence.queue_seconds += member.waited or 0.0
        if not sequence.started:
            sequence.started, sequence.initial_state = True, None
        member.snapshot = bool(
            sequence.snapshot_interval and member.steps and sequence.steps_done % sequence.snapshot_interval == 0
        )
        if not member.final and sequence.slot is None:
            sequence.slot = sequence.weights.slots.take()
        return member

    def _watch(self, sequence: Sequence, deadline: float) -> None:
        if len(self._deadlines) > 2 * self.queued + 1000:  # most of it has run since
            self._deadlines = [entry for entry in self._deadlines if not (entry[2].started or entry[2].over)]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (deadline, sequence.id, sequence))

    def _enqueue(self, sequence: Sequence, *, front: bool) -> None:
        queue = self._queues[sequence.op].setdefault(sequence.weights, OrderedDict())
        queue[sequence] = None
        if front:
            queue.move_to_end(sequence, last=False)
        self.items[sequence.op] += 1

    def _dequeue(self, sequence: Sequence) -> None:
        queues = self._queues[sequence.op]
        queue = queues.get(sequence.weights)
        if queue is not None and sequence in queue:
            del queue[sequence]
            self.items[sequence.op] -= 1
            if not queue:
                del queues[sequence.weights]

    def _forget_chunks(self, sequence: Sequence) -> None:
        for chunk in sequence.chunks:
            self.waiting_bytes -= chunk.rows[chunk.taken :].nbytes
        self.waiting_steps -= sequence.waiting_steps
        sequence.waiting_steps = 0
        sequence.chunks.clear()

    def _release(self, sequence: Sequence) -> None:
        """The one path on which a slot goes back."""
        if sequence.slot is not None:
            sequence.weights.slots.release(sequence.slot)
            sequence.slot = None

    def _drain_seconds(self, weights: Weights) -> float:
        """About how long the queue takes to become half as long: when a refused caller should come again."""
        return min(max(weights.cost.seconds(1, self.waiting_steps) / 2, 0.05), 5.0)
