"""The device time that queued whole sequences are expected to take, in all and by caller, and how fast it goes."""

import collections
import math
from dataclasses import dataclass, field

from seqloom_server.engine.admission.pace import Pace
from seqloom_server.engine.core.sequence import Lane, Sequence, Slice

_RESERVED_SECONDS = 0.5  # that frames which were announced may take to come


@dataclass(slots=True)
class _LaneBacklog:
    """What waits of one lane, and what is reserved. since: when the lane was last served, or began to wait."""

    since: float = 0.0
    seconds: float = 0.0
    sequences: int = 0
    reserved: float = 0.0
    reservations: int = 0
    pace: Pace = field(default_factory=Pace)


class Backlog:
    """Seconds of device time in full batches; a sequence's own are kept in `Sequence.expected_seconds`.

    What is expected of a sequence is settled when its frames come, so that what was added is what is taken away. Frames
    that are announced count until they come, at most for a short while: else many would be admitted before the first
    have come.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.sequences = 0
        self.reserved = 0.0
        self.reservations = 0
        self.pace = Pace()  # of the whole queue: the device's other work, and its gaps, slow it down as well
        self._lanes: dict[Lane, _LaneBacklog] = {}
        self._reservations: collections.deque[tuple[float, Sequence]] = collections.deque()
        self._since = 0.0

    def __len__(self) -> int:
        """The number of lanes that have something here."""
        return len(self._lanes)

    def reserve(self, sequence: Sequence, seconds: float, now: float) -> None:
        """Adds what is expected of a sequence whose frames have not come yet."""
        lane = self._lane(sequence)
        sequence.reserved_seconds = seconds
        lane.reserved += seconds
        lane.reservations += 1
        self.reservations += 1
        self.reserved += seconds
        self._reservations.append((now + _RESERVED_SECONDS, sequence))

    def release(self, sequence: Sequence, seconds: float = math.inf) -> None:
        """Takes away what is reserved for a sequence, or some seconds of it."""
        if not sequence.reserved_seconds or sequence.lane is None:
            return
        lane = self._lanes[sequence.lane]
        if seconds < sequence.reserved_seconds:
            sequence.reserved_seconds -= seconds
            lane.reserved -= seconds
            self.reserved -= seconds
            return
        lane.reserved -= sequence.reserved_seconds
        lane.reservations -= 1
        self.reservations -= 1
        # no rounding errors are kept
        self.reserved = self.reserved - sequence.reserved_seconds if self.reservations else 0.0
        sequence.reserved_seconds = 0.0
        while self._reservations and not self._reservations[0][1].reserved_seconds:
            self._reservations.popleft()  # else it would be kept alive
        self._forget(sequence.lane, lane)

    def expire(self, now: float) -> None:
        """Takes away what was reserved for frames that should have come."""
        while self._reservations and self._reservations[0][0] <= now:
            self.release(self._reservations.popleft()[1])

    def add(self, sequence: Sequence, steps: int, seconds: float, now: float) -> None:
        """Adds steps that have come."""
        lane = self._lane(sequence)
        if not self.sequences:
            self._since = now
        if not lane.sequences:
            lane.since = now
        lane.seconds += seconds
        self.seconds += seconds
        if not sequence.expected_steps:
            lane.sequences += 1
            self.sequences += 1
        sequence.expected_steps += steps
        sequence.expected_seconds += seconds
        if sequence.reserved_seconds:
            self.release(sequence, seconds)

    def take(self, sequence: Sequence, steps: int) -> float:
        """Takes steps away; returns their seconds."""
        if not steps or sequence.lane is None:
            return 0.0
        seconds = sequence.expected_seconds * steps / sequence.expected_steps
        lane = self._lanes[sequence.lane]
        lane.seconds -= seconds
        self.seconds -= seconds
        sequence.expected_seconds -= seconds
        sequence.expected_steps -= steps
        if not sequence.expected_steps:
            lane.sequences -= 1
            self.sequences -= 1
            if not self.sequences:
                self.seconds = 0.0
            self._forget(sequence.lane, lane)
        return seconds

    def served(self, slice_: Slice, seconds: float, now: float) -> None:
        """Learns how fast the queue goes from a slice that has run. seconds: that it was expected to take."""
        taken: dict[Lane, float] = {}
        for member in slice_.members:
            if member.expected and member.sequence.lane is not None:
                taken[member.sequence.lane] = taken.get(member.sequence.lane, 0.0) + member.expected
        if not taken:
            return
        expected = sum(taken.values())
        # a slice that took all there was is narrower than the full batches of a long queue
        self.pace.observe(expected if slice_.crowded else max(expected, seconds), now - self._since, now)
        self._since = now
        for key, seconds_taken in taken.items():
            lane = self._lanes.get(key)
            if lane is not None and lane.sequences:
                if slice_.crowded:
                    lane.pace.observe(seconds_taken, now - lane.since, now)
                lane.since = now

    def wait(self, key: Lane, own: float, now: float) -> float:
        """Returns the seconds until something new, of `own` seconds, has its turn in a lane."""
        pace, lane, total = self.pace.ratio(now), self._lanes.get(key), self.seconds + self.reserved
        # callers take turns, so each other one is served as much as this one, until all of it has ended
        if lane is None:
            return max(0.0, min(total, own * len(self._lanes))) * pace
        mine = lane.seconds + lane.reserved
        others = min(total - mine, (mine + own) * (len(self._lanes) - 1))
        return max((mine + max(0.0, others)) * pace, mine * lane.pace.ratio(now))

    def _lane(self, sequence: Sequence) -> _LaneBacklog:
        assert sequence.lane is not None
        lane = self._lanes.get(sequence.lane)
        if lane is None:
            lane = self._lanes[sequence.lane] = _LaneBacklog()
        return lane

    def _forget(self, key: Lane, lane: _LaneBacklog) -> None:
        """Drops a lane that has nothing any more; no rounding errors are kept."""
        if not lane.sequences:
            lane.seconds = 0.0
            if not lane.reservations:
                del self._lanes[key]
