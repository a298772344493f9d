"""The queued sequences of one class of work, and whose turn it is: callers first, then versions of weights.

Callers are served in rounds (caller_rounds.py), so one with thousands of sequences delays another's only one by what
runs now and by one quantum. Within a round, what has begun goes before what has not, then what is due first; and how
many may be begun is bounded, in all and for each caller, so that work is brought to its end before more is begun.
"""

import heapq
import itertools
from bisect import bisect_left, insort
from collections import OrderedDict
from dataclasses import dataclass, field

from seqloom_server.engine.core.sequence import Lane, Sequence, Weights
from seqloom_server.engine.scheduling.caller_rounds import CallerRounds

_Entry = tuple[bool, float, int, Sequence]  # the sequence's place, and the sequence

_MAX_LANES = 1024  # looked at for one slice: those that have begun something, and those served longest ago


@dataclass(slots=True)
class _Lanes:
    """What is queued under one version of weights. begun: how many of a lane have begun, where any has."""

    entries: OrderedDict[Lane, list[_Entry]] = field(default_factory=OrderedDict)  # least recently served first
    begun: dict[Lane, int] = field(default_factory=dict)
    all_begun: int = 0

    def first(self) -> list[Lane]:
        """Returns the lanes that are looked at for a slice."""
        if len(self.entries) <= _MAX_LANES:
            return list(self.entries)
        others = (lane for lane in self.entries if lane not in self.begun)
        return [*self.begun, *itertools.islice(others, max(0, _MAX_LANES - len(self.begun)))]

    def count_begun(self, lane: Lane, number: int) -> None:
        """Adds to how many of a lane have begun."""
        self.all_begun += number
        count = self.begun.get(lane, 0) + number
        if count:
            self.begun[lane] = count
        else:
            del self.begun[lane]


class FairQueue:
    """The queue of one class. quantum: seconds of device time."""

    def __init__(self, quantum: float) -> None:
        self._quantum = quantum
        self._queues: OrderedDict[Weights, _Lanes] = OrderedDict()  # least recently served first
        self._rounds = CallerRounds(quantum)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def lanes(self) -> int:
        """The number of lanes that have something queued."""
        return self._rounds.active

    def add(self, sequence: Sequence, due: float, *, begun: bool = False) -> None:
        """Queues a sequence. due: orders the sequences of a lane that have begun, and those that have not."""
        assert sequence.lane is not None
        sequence.place = (not begun, due, sequence.id)
        queue = self._queues.get(sequence.weights)
        if queue is None:
            queue = self._queues[sequence.weights] = _Lanes()
        entries = queue.entries.get(sequence.lane)
        if entries is None:
            entries = queue.entries[sequence.lane] = []
            self._rounds.join(sequence.lane)
        insort(entries, (*sequence.place, sequence))
        if begun:
            queue.count_begun(sequence.lane, 1)
        self._size += 1

    def remove(self, sequence: Sequence) -> bool:
        """Removes a sequence, if it is queued; returns whether it was."""
        if sequence.place is None or sequence.lane is None:
            return False
        queue = self._queues[sequence.weights]
        entries = queue.entries[sequence.lane]
        del entries[bisect_left(entries, sequence.place)]
        if not sequence.place[0]:
            queue.count_begun(sequence.lane, -1)
        self._size -= 1
        sequence.place = None
        if not entries:
            self._drop(sequence.weights, sequence.lane)
        return True

    def next_weights(self) -> Weights | None:
        """Returns the weights whose turn it is: of the caller that was given least, those served longest ago."""
        if len(self._queues) < 2:
            return next(iter(self._queues), None)
        return min(self._queues, key=lambda weights: min(map(self._rounds.of, self._queues[weights].first())))

    def candidates(self, weights: Weights, most: int) -> list[Sequence]:
        """Returns up to `most` sequences under these weights, in the order in which they should join a slice."""
        queue = self._queues.get(weights)
        if queue is None or most < 1:
            return []
        if len(queue.entries) == 1:
            (entries,) = queue.entries.values()
            return [entry[3] for entry in entries[:most]]
        return self._in_turns(queue, most)

    def begun(self, weights: Weights) -> list[Sequence]:
        """Returns the sequences under these weights that have begun, in the order in which they should join a slice."""
        queue = self._queues[weights]
        found = [
            (self._rounds.of(lane), *entry) for lane, n in queue.begun.items() for entry in queue.entries[lane][:n]
        ]
        return [entry[-1] for entry in sorted(found)]

    def beginnable(self, sequences: list[Sequence], most: int) -> list[Sequence]:
        """Returns which of queued sequences, all under the same weights, may begin without coming to their end soon.

        `most` may be begun in all, but each caller may have an equal part of these, whatever others have.
        """
        if not sequences:
            return []
        queue = self._queues[sequences[0].weights]
        room, part = most - queue.all_begun, most // max(1, self._rounds.active)
        begun = dict(queue.begun)
        allowed = []
        for sequence in sequences:
            lane = sequence.lane
            assert lane is not None
            if room > 0 or begun.get(lane, 0) < part:
                room -= 1
                begun[lane] = begun.get(lane, 0) + 1
                allowed.append(sequence)
        return allowed

    def take(self, sequences: list[Sequence], cells: list[int]) -> None:
        """Removes queued sequences of one version of weights, and charges their callers for rows of them."""
        weights = sequences[0].weights
        per_cell, queue = weights.cost.per_cell, self._queues[weights]
        self._queues.move_to_end(weights)
        self._rounds.advance()
        if len(queue.entries) == 1:
            ((lane, entries),) = queue.entries.items()
            self._rounds.charge(lane, sum(cells) * per_cell)
            if entries[len(sequences) - 1][3] is sequences[-1]:  # they are its first, as nearly always
                if lane in queue.begun:
                    queue.count_begun(lane, -min(queue.begun[lane], len(sequences)))
                for sequence in sequences:
                    sequence.place = None
                self._size -= len(sequences)
                del entries[: len(sequences)]
                if not entries:
                    self._drop(weights, lane)
                return
        else:
            for sequence, count in zip(sequences, cells, strict=True):
                assert sequence.lane is not None
                self._rounds.charge(sequence.lane, count * per_cell)
                queue.entries.move_to_end(sequence.lane)
        for sequence in sequences:
            self.remove(sequence)

    def _in_turns(self, queue: _Lanes, most: int) -> list[Sequence]:
        lanes = queue.first()
        queues = [queue.entries[lane] for lane in lanes]
        given = [self._rounds.given(lane) for lane in lanes]
        positions = [0] * len(queues)
        heads = [(given[n] // self._quantum, *entries[0][:3], n) for n, entries in enumerate(queues)]
        heapq.heapify(heads)
        chosen: list[Sequence] = []
        while heads and len(chosen) < most:
            n = heads[0][-1]
            entries = queues[n]
            sequence = entries[positions[n]][3]
            chosen.append(sequence)
            positions[n] += 1
            if positions[n] == len(entries):
                heapq.heappop(heads)
            else:  # a long sequence takes part of a slice only
                given[n] += min(sequence.waiting_steps * sequence.weights.cost.per_cell, self._quantum)
                heapq.heapreplace(heads, (given[n] // self._quantum, *entries[positions[n]][:3], n))
        return chosen

    def _drop(self, weights: Weights, lane: Lane) -> None:
        """Drops a lane that has nothing queued under these weights."""
        queue = self._queues[weights]
        del queue.entries[lane]
        if not queue.entries:
            del self._queues[weights]
        self._rounds.leave(lane)
