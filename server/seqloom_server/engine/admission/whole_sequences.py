"""Predicts when a whole sequence would have ended; refuses at the door what would be late, and drops what will be.

As in Clockwork (OSDI 2020), the time that work takes is predictable, so what cannot be in time costs nothing. What is
expected of the work in the queue is compared with what slices take, so a mistake is corrected within a second or two;
and what is refused because of it is tried again once nothing else is there, so that no mistake lasts.
"""

import math

from seqloom_server.engine.admission.backlog import Backlog
from seqloom_server.engine.admission.pace import Pace
from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.overload import overloaded
from seqloom_server.engine.core.sequence import Sequence, Slice
from seqloom_server.errors import Overload, Reason, ServerError

_FULL_WIDTH = 64  # members of a full batch
_LONG_SECONDS = 2.0  # that a long sequence needs alone
_MARGIN = 0.2  # of the time allowed: for the way back to the caller, and for what was not expected
_DOUBT = 0.05  # of a prediction: who comes again when told should be served
_LEAST_RETRY = 0.05  # seconds: many are refused at about the same time


class Admission:
    """The admission of whole sequences. Time is an argument, on the clock of their deadlines."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self._limits = limits
        self.backlog = Backlog()
        self._pace = Pace()  # of slices
        self._refused_at = -math.inf
        self._busy_until = 0.0  # when the slices under way are expected to end
        self._in_flight = self._members = 0  # slices under way, and the sequences in them

    def admit(
        self, sequence: Sequence, steps: int, slice_seconds: float, now: float, *, announced: bool = False
    ) -> None:
        """Admits a new sequence, of which `steps` are known, or announced. Raises ServerError as check() does.

        slice_seconds: that a slice may take at present.
        """
        self.check(sequence, steps, slice_seconds, now)
        sequence.admitted = now
        if announced:
            self.backlog.reserve(sequence, steps * sequence.weights.cost.cell_seconds(_FULL_WIDTH), now)

    def check(self, sequence: Sequence, steps: int, slice_seconds: float, now: float) -> None:
        """Predicts when a new sequence would have ended. Raises ServerError OVERLOADED if that is too late.

        And DEADLINE_EXCEEDED if it would be even with nothing else there: to come again would not help.
        """
        cost, backlog = sequence.weights.cost, self.backlog
        if backlog.reservations:
            backlog.expire(now)
        pace = max(self._pace.ratio(now), backlog.pace.ratio(now))
        alone = cost.seconds(max(steps, 1), steps)
        lane = sequence.lane = (sequence.caller, alone > _LONG_SECONDS)
        # it shares its slices with others, whose rows are computed in between
        others = min(backlog.sequences + self._members, _FULL_WIDTH - 1)
        company = cost.per_cell * steps * others
        left = math.inf if sequence.deadline is None else sequence.deadline - now
        allowed, longest = left * (1 - _MARGIN), self._limits.max_queue_seconds
        under_way = max(0.0, self._busy_until - now)
        # no later than when all that waits has been done
        sequence.predicted = under_way + (backlog.seconds + backlog.reserved + alone + company) * pace
        if sequence.predicted <= allowed and sequence.predicted <= longest:
            return
        queue = backlog.wait(lane, steps * cost.cell_seconds(_FULL_WIDTH), now)
        wait = under_way + queue
        # about half of its first slice is in `queue` already
        done = sequence.predicted = wait + (alone + company) * pace - min(company, queue, slice_seconds) / 2
        late = max(done - allowed, wait - longest)
        if late > 0 and left > 0 and (others or not self._pace.is_stale(now)):
            if alone > left and cost.is_known:
                raise ServerError(
                    Reason.DEADLINE_EXCEEDED,
                    f"the sequence needs {alone:.3g} s even alone: its timeout leaves {left:.3g} s",
                    cause=Overload.TOO_LATE,
                )
            self._refused_at = now
            raise overloaded(
                f"the sequence would have ended in {done:.3g} s, before which it waits {wait:.3g} s: expected at most "
                f"{allowed:.3g} s, four fifths of its timeout, and {longest:g} s, max_queue_seconds",
                max(late + _DOUBT * done, _LEAST_RETRY),
                Overload.TOO_LATE,
            )

    def refuses(self, now: float) -> bool:
        """Whether a sequence was refused in the last second."""
        return now - self._refused_at < 1.0

    def arrived(self, sequence: Sequence, steps: int, now: float) -> None:
        """Counts steps of an admitted sequence that have come and can run."""
        if steps:
            self.backlog.add(sequence, steps, steps * sequence.weights.cost.cell_seconds(_FULL_WIDTH), now)

    def due(self, sequence: Sequence) -> float:
        """Returns when an admitted sequence should have ended, or at least begun."""
        assert sequence.admitted is not None
        latest = sequence.admitted + self._limits.max_queue_seconds
        return latest if sequence.deadline is None else min(sequence.deadline, latest)

    def has_waited(self, sequence: Sequence, now: float) -> bool:
        """Whether an admitted sequence has been there for longer than one may be expected to wait."""
        return sequence.admitted is not None and now > sequence.admitted + self._limits.max_queue_seconds

    def pace(self, now: float) -> float:
        """Returns the seconds that a second of slices takes, as was expected of them."""
        return self._pace.ratio(now)

    def doomed(self, candidates: list[Sequence], seconds: float, now: float) -> tuple[list[Sequence], float]:
        """Returns the candidates for a slice that could not end in time even alone, or have waited for too long.

        And the seconds that the slice may take: as few as the most urgent of the others needs, but no fewer than beside
        live sessions.
        """
        if not candidates:
            return [], seconds
        pace, cost, doomed = self._pace.ratio(now), candidates[0].weights.cost, []
        longest = max([each.waiting_steps for each in candidates])
        enough = max(seconds, cost.seconds(longest, longest))
        for sequence in candidates:
            if not sequence.started and self.has_waited(sequence, now):
                doomed.append(sequence)
                continue
            if sequence.deadline is None:
                continue
            left = (sequence.deadline - now) / pace
            if left > enough and not sequence.total_steps:
                continue
            steps = _steps_left(sequence)
            if left < cost.seconds(steps, steps):
                doomed.append(sequence)
            elif left < seconds:
                seconds = max(left, self._limits.slice_seconds)
        if doomed and len(doomed) == len(candidates) and self._pace.is_stale(now):
            del doomed[0]  # so that a cost that was taken for too high is seen again
        return doomed, seconds

    def late(self, candidates: list[Sequence], sizes: list[int], now: float) -> list[Sequence]:
        """Returns which of the first candidates would end too late if a slice takes `sizes` steps of them.

        Those that have begun have the benefit of the doubt until they would end in this slice. If all would be late,
        half are returned: fewer may be in time.
        """
        if not sizes:
            return []
        cost, cut, first = candidates[0].weights.cost, max(sizes), candidates[: len(sizes)]
        seconds = cost.seconds(cut, sum(sizes)) * self._pace.ratio(now)
        slices = max([each.waiting_steps for each in first]) / max(cut, 1)
        earliest = min([each.deadline for each in first if each.deadline is not None], default=math.inf)
        if earliest > now + slices * seconds / (1 - _MARGIN):
            return []  # as in most slices
        late = [
            each
            for each, size in zip(first, sizes, strict=True)
            if each.deadline is not None
            and (size == each.waiting_steps or not each.started)
            and (each.deadline - now) * (1 if each.started else 1 - _MARGIN)
            < seconds * _steps_left(each) / max(size, 1)
        ]
        return late if len(late) < len(sizes) else late[(len(late) + 1) // 2 :]

    def launched(self, slice_: Slice, now: float) -> None:
        """Notes that a slice has been formed and will run now, or behind the one under way."""
        expected = slice_.weights.cost.seconds(slice_.steps, slice_.cells) * self._pace.ratio(now)
        self._busy_until = max(self._busy_until, now) + expected
        slice_.crowded = self.backlog.sequences > 0
        self._in_flight += 1
        self._members += len(slice_.members)

    def completed(self, slice_: Slice, seconds: float, now: float, *, failed: bool = False) -> None:
        """Learns from a slice that has run, unless it failed."""
        self._in_flight -= 1
        self._members -= len(slice_.members)
        if not self._in_flight:
            self._busy_until = now
        expected = slice_.weights.cost.seconds(slice_.steps, slice_.cells)
        if failed:
            return
        if expected > 0:
            self._pace.observe(expected, seconds, now)
        self.backlog.served(slice_, expected, now)


def _steps_left(sequence: Sequence) -> int:
    """Returns the steps that a sequence has left: those that wait, and those announced that have not come."""
    return max(sequence.waiting_steps, sequence.total_steps - sequence.steps_done)
