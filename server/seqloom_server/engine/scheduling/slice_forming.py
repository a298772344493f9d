"""Forms a slice: which queued sequences join it, with how many of their steps, and which are too late for any.

Slices are shorter while several callers have whole sequences, or one has long and short ones, and bring the first one
of each to its end where they can: so it waits for one slice of others and not for three. Of what would be begun and not
ended, only as much is begun as fills a slice.
"""

import math
from typing import NamedTuple

import numpy as np

from seqloom_server.engine.admission import session_rate
from seqloom_server.engine.admission.whole_sequences import Admission
from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.sequence import Sequence, Slice
from seqloom_server.engine.scheduling import step_split
from seqloom_server.engine.scheduling.fair_queue import FairQueue
from seqloom_server.engine.scheduling.lockstep import Lockstep
from seqloom_server.engine.scheduling.slice_fit import MIN_WIDTH, SliceFit

_SHARED_SECONDS = 1.0  # for which callers who were there at the same time are expected to be so again
_SHARED_PART = 0.8  # of bulk_slice_seconds
_TURNS = 16  # candidates that a slice should bring to their end
_LEAST_WIDTH = 8  # of a slice that is narrower for that
_MOST_PACE = 2.0  # slower than this, the slices of several callers become longer than that


_Pair = tuple[Sequence, int]  # and how many of its steps


class Joining(NamedTuple):
    """The sequences that join a slice, the steps of each, and those that can not be in time any more."""

    sequences: list[Sequence]
    steps: list[int]
    late: list[Sequence]


class SliceForming:
    """Chooses among the candidates of a queue. whole: the queue of whole sequences."""

    def __init__(self, limits: SchedulerLimits, whole: FairQueue, admission: Admission, lockstep: Lockstep) -> None:
        self._limits = limits
        self._whole = whole
        self._admission = admission
        self._lockstep = lockstep
        self._shared_at = -math.inf  # when several callers had whole sequences

    def join(self, slice_: Slice, queue: FairQueue, slice_seconds: float, now: float) -> Joining:
        """Returns what should join the slice from a queue, as many sequences and as many of their steps as fit.

        slice_seconds: that a slice may take at present. If anything is queued under the weights of an empty slice,
        something joins it, or is late.
        """
        most = self._limits.max_batch_sequences - len(slice_.members)
        candidates = queue.candidates(slice_.weights, most)
        if queue is not self._whole:
            sizes = self._fit(slice_, candidates, slice_seconds, now)
            return Joining(candidates[: len(sizes)], sizes, [])
        pace, seconds = self._shared(slice_seconds, now)
        late, seconds = self._admission.doomed(candidates, seconds, now)
        candidates = _without(late, candidates)
        sizes = self._fit(slice_, candidates, seconds, now, pace=pace)
        if not slice_.members and (more := self._admission.late(candidates, sizes, now)):
            late = late + more
            candidates = _without(more, candidates)
            sizes = self._fit(slice_, candidates, seconds, now, pace=pace)
        pairs, left_out = self._beginnable(candidates, sizes)
        if left_out:  # what has begun takes their places: of callers that were given more, else it were among them
            rest = _without([each for each, _ in pairs] + late, queue.begun(slice_.weights))
            candidates = [*(each for each, _ in pairs), *rest][:most]
            sizes = self._fit(slice_, candidates, seconds, now, pace=pace)
            pairs = self._beginnable(candidates, sizes)[0] or pairs
        return Joining([each for each, _ in pairs], [size for _, size in pairs], late)

    def _shared(self, seconds: float, now: float) -> tuple[float, float]:
        """Returns the pace and a slice's seconds while several lanes have whole sequences, or had them a moment ago.

        Else 0 and all the seconds that it may take.
        """
        if self._whole.lanes > 1:
            self._shared_at = now
        if now - self._shared_at >= _SHARED_SECONDS:
            return 0.0, seconds
        pace = min(max(1.0, self._admission.pace(now)), _MOST_PACE)
        most = max(self._limits.slice_seconds, _SHARED_PART / pace * self._limits.bulk_slice_seconds)
        return pace, min(seconds, most)

    def _fit(
        self, slice_: Slice, candidates: list[Sequence], seconds: float, now: float, *, pace: float = 0.0
    ) -> list[int]:
        """Returns how many steps of each of the first candidates join the slice.

        pace: if it is not 0, all of those whose turn it is, if enough fit: the fewer, the slower it goes.
        """
        if not candidates:
            return []
        if len(candidates) == 1:  # a stream group, or a lone caller
            (only,) = candidates
            steps = self._runnable(only, now)
            if SliceFit(self._limits, seconds, slice_).takes_alone(steps, only.chunks[0].width):
                return [steps]
        if not slice_.members:  # what joins others takes the room that they leave, or waits
            self._narrow(slice_, candidates, seconds)
        lengths = np.fromiter((self._runnable(each, now) for each in candidates), np.int64, len(candidates))
        if self._lockstep.should_halve(slice_, candidates, lengths, now):
            lengths = lengths[: len(candidates) // 2]
        widths = [1 if each.group is None else each.chunks[0].width for each in candidates[: len(lengths)]]
        fit = SliceFit(self._limits, seconds, slice_, widths if max(widths) > 1 else None)
        if pace and not slice_.members:
            least = int(lengths[_firsts(candidates)].max())
            count, cut = fit.fit(lengths, least, max(_LEAST_WIDTH, int(MIN_WIDTH / pace)))
        else:
            count, cut = fit.fit(lengths)
        sizes: list[int] = np.minimum(lengths[:count], cut).tolist()
        return sizes

    def _narrow(self, slice_: Slice, candidates: list[Sequence], seconds: float) -> None:
        """Splits the next chunk of each group that is too wide for a slice, even for one step."""
        groups = [each for each in candidates if each.group is not None]
        if groups:
            widest = SliceFit(self._limits, seconds, slice_).widest()
            for each in groups:
                step_split.narrow(each, widest)

    def _runnable(self, sequence: Sequence, now: float) -> int:
        """Returns the steps that may run, of no more than a slice could have: a group's calls may be thousands."""
        most = self._limits.max_batch_steps
        if sequence.group is not None:
            most = max(1, most // sequence.chunks[0].width)
        return step_split.runnable(sequence, session_rate.allowed(sequence, most, now))

    def _beginnable(self, candidates: list[Sequence], sizes: list[int]) -> tuple[list[_Pair], bool]:
        """Returns the first candidates, each with its steps, less what would be begun and not ended where enough is.

        And whether anything was left out.
        """
        pairs = list(zip(candidates, sizes, strict=False))
        cut = [each for each, size in pairs if size < each.waiting_steps and not each.started]
        if not cut:
            return pairs, False
        most = min(max(MIN_WIDTH, cut[0].weights.cost.efficient_width), self._limits.max_batch_sequences)
        left_out = set(cut).difference(self._whole.beginnable(cut, most))
        return [pair for pair in pairs if pair[0] not in left_out], bool(left_out)


def _firsts(candidates: list[Sequence]) -> list[int]:
    """Returns the positions of those whose turn it is: the first one of each caller among the first few."""
    firsts: dict[str, int] = {}
    for position, sequence in enumerate(candidates[:_TURNS]):
        firsts.setdefault(sequence.caller, position)
    return list(firsts.values())


def _without(some: list[Sequence], sequences: list[Sequence]) -> list[Sequence]:
    """Returns the sequences that are not among some."""
    if not some:
        return sequences
    among = set(some)
    return [each for each in sequences if each not in among]
