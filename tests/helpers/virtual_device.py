"""A device in virtual time over the real scheduler: events in order, and slices that take what they really cost.

The scheduler's cost model may begin wrong; it learns from the slices that ran, as on a server.
"""

import heapq
import itertools
import math
import random

from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.sequence import Op
from seqloom_server.engine.core.training_job import TrainingBatch, TrainingCall
from seqloom_server.engine.scheduling.scheduler import Scheduler

from helpers.simulated_device import KnownWeights

TRAINING_PIECE = 0.02  # seconds


class TimedWeights(KnownWeights):
    """Weights of which the scheduler knows a guess of the true cost. cost: (per slice, per step, per cell), seconds."""

    def __init__(self, cost, *, guess=1.0, model="m"):
        super().__init__(
            model, **dict(zip(("per_slice", "per_step", "per_cell"), (guess * part for part in cost), strict=True))
        )
        self.true_cost = cost

    def true_seconds(self, steps, cells):
        per_slice, per_step, per_cell = self.true_cost
        return per_slice + per_step * steps + per_cell * cells


class VirtualDevice:
    """Runs events and slices in virtual time.

    slowness: a function of the time, by which factor the device is slower than the true cost. noise: the relative
    spread of a slice's time. failing: the part of the slices that fail. dead_steps: those put into slices although
    their callers had gone or their deadlines had passed before. A sequence's sink is told what became of it: ran(now),
    failed(now), dropped(now); gone(now) asks whether it is over for its caller.
    """

    def __init__(self, *, slowness=lambda now: 1.0, noise=0.05, failing=0.0, seed=0, **limits):
        self.scheduler = Scheduler(SchedulerLimits(**limits))
        self.now = 0.0
        self.random = random.Random(seed)
        self.used = dict.fromkeys(Op, 0.0)
        self.slices = 0
        self.steps = 0
        self.dead_steps = 0
        self.longest_slice = 0.0
        self._slowness, self._noise, self._failing = slowness, noise, failing
        self._events = []
        self._order = itertools.count()  # of events at the same time
        self._busy = False
        self._wakes = math.inf

    @property
    def busy_seconds(self):
        return sum(self.used.values())

    def train(self):
        """Begins training that never ends; such a device runs until a time."""
        self.scheduler.training.push(
            TrainingCall("run", outcome=None, examples=[None], request=None, steps=10), self.now
        )

    def at(self, time, action):
        """Calls action() at a time."""
        heapq.heappush(self._events, (time, next(self._order), action))

    def run(self, until=math.inf):
        """Runs until a time, or until nothing more will happen."""
        while True:
            if not self._busy:
                self._turn()
            if not self._events or self._events[0][0] > until:
                break
            time, _, action = heapq.heappop(self._events)
            self.now = max(self.now, time)
            action()
        if until < math.inf:
            self.now = until

    def _turn(self):
        """Does what the device thread does when it is free."""
        self._drop_expired()
        work = self.scheduler.next_work(self.now)
        self._drop_expired()  # what it found to be hopeless
        if isinstance(work, TrainingBatch):
            self._occupy(TRAINING_PIECE, lambda seconds: self._trained(seconds))
        elif work is not None:
            assert work.members, "a slice of nothing"
            self.slices += 1
            self.steps += work.cells
            self.dead_steps += sum(member.steps for member in work.members if member.sequence.sink.gone(self.now))
            self._occupy(work.weights.true_seconds(work.steps, work.cells), lambda seconds: self._ran(work, seconds))
        else:
            deadline = self.scheduler.next_deadline()
            if deadline is not None and deadline < self._wakes:
                self._wakes = deadline
                self.at(deadline, self._wake)

    def _wake(self):
        self._wakes = math.inf

    def _drop_expired(self):
        for sequence in self.scheduler.expire(self.now):
            sequence.sink.dropped(self.now)

    def _occupy(self, seconds, then):
        seconds *= self._slowness(self.now) * self.random.lognormvariate(0.0, self._noise)
        self._busy = True
        self.longest_slice = max(self.longest_slice, seconds)
        self.at(self.now + seconds, lambda: self._free(seconds, then))

    def _free(self, seconds, then):
        self._busy = False
        then(seconds)

    def _trained(self, seconds):
        self.used[Op.TRAIN] += seconds
        self.scheduler.advanced(seconds, self.now, finished=False)

    def _ran(self, work, seconds):
        failed = self.random.random() < self._failing
        self.scheduler.complete(work, seconds, self.now, failed=failed)
        for member in work.members:
            self.used[member.sequence.op] += seconds * member.steps / max(work.cells, 1)
        for member in work.members:
            sink = member.sequence.sink
            (sink.failed if failed else sink.ran)(self.now)
        if failed:
            return
        work.weights.cost.observe(work.steps, work.cells, seconds)
