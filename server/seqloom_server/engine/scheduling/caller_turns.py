"""The order of queued training jobs: callers take turns, and what has an order of its own keeps it.

Each turn is a batch: of the caller that has waited longest since its last one, under those of its weights that have
waited longest. Gradient calls of all callers under the same weights share that batch; calls and tasks of a run stand in
the order in which they came. Nothing here reads a clock, and a batch costs as much as it has jobs.
"""

import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from seqloom_server.engine.core.training_job import Job, Task, TrainingCall

# Whether a job joins the batch that is being formed; if so, it is taken.
Joins = Callable[[Job], bool]


class _InOrder:
    """Jobs of a run, in the order in which they came."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[Job, None] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def add(self, job: Job) -> None:
        self._jobs[job] = None

    def remove(self, job: Job) -> bool:
        """Removes a job; returns False if it is not here."""
        if job not in self._jobs:
            return False
        del self._jobs[job]
        return True

    def take(self, joins: Joins, most: int, first: str) -> list[Job]:
        """Removes and returns one task, or the calls before the next one that join, at most `most`.

        first: is not asked, as the order decides.
        """
        taken: list[Job] = []
        for job in itertools.islice(self._jobs, most):
            if (taken and isinstance(job, Task)) or not joins(job):
                break
            taken.append(job)
            if isinstance(job, Task):
                break
        for job in taken:
            del self._jobs[job]
        return taken


class _InTurns:
    """Calls that have no order but that of their callers, of whom the one with the fewest steps so far is next."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[str, OrderedDict[Job, None]] = OrderedDict()  # least recently served first
        self._steps: dict[str, int] = {}  # that each of them has had, from where it came
        self._fewest = 0

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def add(self, job: Job) -> None:
        lane = self._lanes.get(job.caller)
        if lane is None:
            lane = self._lanes[job.caller] = OrderedDict()
            self._steps[job.caller] = self._fewest  # to have been away earns nothing
        lane[job] = None

    def remove(self, job: Job) -> bool:
        """Removes a job; returns False if it is not here."""
        lane = self._lanes.get(job.caller)
        if lane is None or job not in lane:
            return False
        self._pop(lane, job)
        return True

    def take(self, joins: Joins, most: int, first: str) -> list[Job]:
        """Removes and returns the calls that join, at most `most`, of which one is of the caller `first`.

        A caller whose next call does not join has none until the next batch.
        """
        if first in self._lanes:
            self._lanes.move_to_end(first, last=False)
        callers = list(itertools.islice(self._lanes, most))
        self._fewest = max(self._fewest, min(self._steps[caller] for caller in callers))
        turns = [(self._steps[caller] if place else -1, place) for place, caller in enumerate(callers)]
        heapq.heapify(turns)
        taken: list[Job] = []
        while turns and len(taken) < most:
            caller = callers[turns[0][1]]
            lane = self._lanes[caller]
            job = next(iter(lane))
            if not joins(job):
                heapq.heappop(turns)
                continue
            assert isinstance(job, TrainingCall)
            taken.append(job)
            self._steps[caller] += job.steps
            self._lanes.move_to_end(caller)
            if self._pop(lane, job):
                heapq.heapreplace(turns, (self._steps[caller], turns[0][1]))
            else:
                heapq.heappop(turns)
        return taken

    def _pop(self, lane: OrderedDict[Job, None], job: Job) -> bool:
        """Removes a job from its lane; returns whether that has another."""
        del lane[job]
        if not lane:
            del self._lanes[job.caller], self._steps[job.caller]
        return bool(lane)


class CallerTurns:
    """The queued jobs by weights, and the turns of their callers."""

    def __init__(self) -> None:
        # by weights, in order; more than one part only where both kinds of job come under the same weights
        self._lines: dict[Any, deque[_InOrder | _InTurns]] = {}
        # by caller, by weights, both least recently served first: how many jobs
        self._turns: OrderedDict[str, OrderedDict[Any, int]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._lines)

    @property
    def callers(self) -> int:
        """The number of callers that have a job here."""
        return len(self._turns)

    def add(self, job: Job) -> None:
        kind = _InOrder if isinstance(job, Task) or job.call is not None else _InTurns
        line = self._lines.setdefault(job.weights, deque())
        if not line or not isinstance(line[-1], kind):
            line.append(kind())
        line[-1].add(job)
        counts = self._turns.setdefault(job.caller, OrderedDict())
        counts[job.weights] = counts.get(job.weights, 0) + 1

    def remove(self, job: Job) -> bool:
        """Removes a job; returns False if it is not here."""
        line = self._lines.get(job.weights, ())
        if not any(part.remove(job) for part in line):
            return False
        self._uncount(job)
        self._drop_empty(job.weights)
        return True

    def take(self, joins: Joins, most: int) -> list[Job]:
        """Removes and returns the jobs of the next batch, at least one of those that are here; `most` at most.

        joins: must admit the first job that it is asked about.
        """
        caller = next(iter(self._turns))
        weights = next(iter(self._turns[caller]))
        jobs = self._lines[weights][0].take(joins, most, caller)
        others = dict.fromkeys(job.caller for job in jobs if job.caller != caller)
        for served in (*others, caller):  # so that it is another's turn next
            self._turns.move_to_end(served)
            self._turns[served].move_to_end(weights)
        for job in jobs:
            self._uncount(job)
        self._drop_empty(weights)
        return jobs

    def _uncount(self, job: Job) -> None:
        counts = self._turns[job.caller]
        counts[job.weights] -= 1
        if not counts[job.weights]:
            del counts[job.weights]
            if not counts:
                del self._turns[job.caller]

    def _drop_empty(self, weights: Any) -> None:
        line = self._lines[weights]
        while line and not line[0]:
            line.popleft()
        if not line:
            del self._lines[weights]
