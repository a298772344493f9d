"""The queued sequences of one class of work, and whose turn it is: callers first, then versions of weights.

Callers are served in rounds, as in deficit round robin (Shreedhar and Varghese, 1995): each round is worth a quantum of
device time, and who has been given more than others waits for the next round. So a caller with thousands of sequences
delays another's only one by what runs now and by one quantum. Within a round, what has begun goes before what has not,
then what is due first; and how many may be begun is bounded, in all and for each caller, so that work is brought to its
end before more is begun.
"""

import heapq
import itertools
from bisect import bisect_left, insort
from collections import OrderedDict
from dataclasses import dataclass

from seqloom_server.engine.core.sequence import Lane, Sequence, Weights

_Entry = tuple[bool, float, int, Sequence]  # the sequence's place, and the sequence
_Lanes = OrderedDict[Lane, list[_Entry]]

_KEPT_ACCOUNTS = 64
_MAX_LANES = 1024  # looked at for one slice: those served longest ago


@dataclass(slots=True)
class _Account:
    """The device time given to a lane, in seconds, and under how many versions of weights it has something queued.

    It is kept for a while when nothing is: who comes and goes gets no more than who stays.
    """

    served: float
    queues: int = 0


class FairQueue:
    """The queue of one class. quantum: seconds of device time."""

    def __init__(self, quantum: float) -> None:
        self._quantum = quantum
        self._lanes: OrderedDict[Weights, _Lanes] = OrderedDict()  # least recently served first
        self._accounts: dict[Lane, _Account] = {}
        self._begun = 0  # queued sequences that have begun
        self._reached = 0.0  # what every caller in the queue was given, so where one that joins begins
        self._size = 0
        self._active = 0  # lanes that have something queued

    def __len__(self) -> int:
        return self._size

    def add(self, sequence: Sequence, due: float, *, begun: bool) -> None:
        """Queues a sequence. due: orders the sequences of a lane that have begun, and those that have not."""
        assert sequence.lane is not None
        sequence.place = (not begun, due, sequence.id)
        lanes = self._lanes.setdefault(sequence.weights, OrderedDict())
        entries = lanes.get(sequence.lane)
        if entries is None:
            entries = lanes[sequence.lane] = []
            account = self._accounts.setdefault(sequence.lane, _Account(self._reached))
            if not account.queues:
                account.served = max(account.served, self._reached)
                self._active += 1
            account.queues += 1
        insort(entries, (*sequence.place, sequence))
        self._begun += begun
        self._size += 1

    def remove(self, sequence: Sequence) -> bool:
        """Removes a sequence, if it is queued; returns whether it was."""
        if sequence.place is None or sequence.lane is None:
            return False
        lanes = self._lanes[sequence.weights]
        entries = lanes[sequence.lane]
        del entries[bisect_left(entries, sequence.place)]
        self._begun -= not sequence.place[0]
        self._size -= 1
        sequence.place = None
        if not entries:
            self._drop(sequence.weights, sequence.lane)
        return True

    def next_weights(self) -> Weights | None:
        """Returns the weights whose turn it is: of the caller that was given least, those served longest ago."""
        if len(self._lanes) < 2:
            return next(iter(self._lanes), None)
        return min(self._lanes, key=lambda weights: min(map(self._round, _first(self._lanes[weights]))))

    def candidates(self, weights: Weights, most: int) -> list[Sequence]:
        """Returns up to `most` sequences under these weights, in the order in which they should join a slice."""
        lanes = self._lanes.get(weights)
        if lanes is None or most < 1:
            return []
        if len(lanes) == 1:
            (entries,) = lanes.values()
            return [entry[3] for entry in entries[:most]]
        return self._in_turns(lanes, most)

    def beginnable(self, sequences: list[Sequence], most: int) -> list[Sequence]:
        """Returns which of queued sequences may begin without coming to their end soon.

        `most` may be begun in all, but each caller may have an equal part of these, whatever others have.
        """
        room = most - self._begun
        part = most // max(1, self._active)
        begun: dict[Lane, int] = {}
        allowed = []
        for sequence in sequences:
            lane = sequence.lane
            assert lane is not None
            if lane not in begun:
                begun[lane] = _count_begun(self._lanes[sequence.weights][lane])
            if room > 0 or begun[lane] < part:
                room -= 1
                begun[lane] += 1
                allowed.append(sequence)
        return allowed

    def take(self, sequences: list[Sequence], steps: list[int]) -> None:
        """Removes queued sequences of one version of weights, and charges their callers for steps of them."""
        weights = sequences[0].weights
        per_cell, lanes = weights.cost.per_cell, self._lanes[weights]
        self._lanes.move_to_end(weights)
        if len(lanes) == 1:
            ((lane, entries),) = lanes.items()
            account = self._accounts[lane]
            self._reached = max(self._reached, account.served)
            account.served += sum(steps) * per_cell
            if entries[len(sequences) - 1][3] is sequences[-1]:  # they are its first, as nearly always
                for sequence in sequences:
                    self._begun -= not sequence.place[0]  # type: ignore[index]  # it is queued
                    sequence.place = None
                self._size -= len(sequences)
                del entries[: len(sequences)]
                if not entries:
                    self._drop(weights, lane)
                return
        else:
            served = [self._accounts[sequence.lane] for sequence in sequences if sequence.lane is not None]
            self._reached = max(self._reached, min([account.served for account in served]))
            for sequence, account, count in zip(sequences, served, steps, strict=True):
                account.served += count * per_cell
                lanes.move_to_end(sequence.lane)  # type: ignore[arg-type]
        for sequence in sequences:
            self.remove(sequence)

    def _in_turns(self, lanes: _Lanes, most: int) -> list[Sequence]:
        queues = [lanes[lane] for lane in _first(lanes)]
        served = [self._accounts[lane].served for lane in _first(lanes)]
        positions = [0] * len(queues)
        heads = [(self._rounds(served[n]), *entries[0][:3], n) for n, entries in enumerate(queues)]
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
                served[n] += min(sequence.waiting_steps * sequence.weights.cost.per_cell, self._quantum)
                heapq.heapreplace(heads, (self._rounds(served[n]), *entries[positions[n]][:3], n))
        return chosen

    def _forget_accounts(self) -> None:
        """Drops the accounts of lanes that are gone, but for some that were given most, when they are many."""
        if len(self._accounts) <= 2 * self._active + _KEPT_ACCOUNTS:
            return
        # those that were given no more than all others would begin anew anyway
        gone = [(lane, one) for lane, one in self._accounts.items() if not one.queues and one.served > self._reached]
        kept = heapq.nlargest(_KEPT_ACCOUNTS // 2, gone, key=lambda item: item[1].served)
        self._accounts = {lane: one for lane, one in self._accounts.items() if one.queues}
        self._accounts.update(kept)

    def _drop(self, weights: Weights, lane: Lane) -> None:
        """Drops a lane that has nothing queued under these weights."""
        lanes = self._lanes[weights]
        del lanes[lane]
        account = self._accounts[lane]
        account.queues -= 1
        if not account.queues:
            self._active -= 1
            self._forget_accounts()
        if not lanes:
            del self._lanes[weights]

    def _round(self, lane: Lane) -> float:
        return self._rounds(self._accounts[lane].served)

    def _rounds(self, served: float) -> float:
        return (served - self._reached) // self._quantum


def _first(lanes: _Lanes) -> list[Lane]:
    """Returns the lanes that are looked at for a slice."""
    return list(lanes) if len(lanes) <= _MAX_LANES else list(itertools.islice(lanes, _MAX_LANES))


def _count_begun(entries: list[_Entry]) -> int:
    """Returns how many sequences of a lane have begun: those at its front."""
    return bisect_left(entries, (True,))
