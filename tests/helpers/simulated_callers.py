"""Simulated callers of whole sequences, who wait for one another or not, give up, and come again when refused."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from seqloom_server.engine.core.sequence import Chunk, Op
from seqloom_server.errors import Reason, ServerError

from helpers.simulated_device import make_sequence

FRAMES = np.zeros((1 << 16, 1), "f4")  # every chunk is a view of these, since nobody reads them


@dataclass(slots=True, eq=False)
class Call:
    """One call of a caller: what became of it, and when.

    outcome: "good" (answered in time), "late", "dropped" by the scheduler, "refused" at the door, "left" by its caller,
    "failed" with its slice; None while it is under way. again: whether it repeats one that was refused. computed: steps
    that were spent on it.
    """

    caller: Any
    steps: int
    arrived: float
    deadline: float | None
    again: bool
    outcome: str | None = None
    ended: float = 0.0
    computed: int = 0
    retry_after: float | None = None
    sequence: Any = None

    def gone(self, now):
        return self.outcome is not None or (self.deadline is not None and self.deadline < now)

    def ran(self, now):
        if self.outcome is None and self.sequence.over:
            self.end("late" if self.deadline is not None and now > self.deadline else "good", now)

    def failed(self, now):
        if self.outcome is None:
            self.end("failed", now)

    def dropped(self, now):
        if self.outcome is None:
            self.end("dropped", now)

    def end(self, outcome, now):
        self.outcome, self.ended, self.computed = outcome, now, self.sequence.steps_done
        self.sequence = None  # a run has many calls
        self.caller.ended(self)


@dataclass(eq=False)
class Caller:
    """Calls at times of its own, whatever becomes of its other calls.

    times: a function of a random.Random that yields the times of arrivals. lengths: a function of it that returns
    steps. timeout: seconds, None for no deadline. patience: a function of it that returns the seconds after which it
    gives up. repeats: how often it comes again when refused. names: the callers that it is counted as, in turns.
    """

    device: Any
    weights: Any
    lengths: Any
    times: Any = None
    timeout: float | None = 1.0
    patience: Any = None
    repeats: int = 0
    name: str = "caller"
    names: Any = None
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self):
        self._left = {}  # how often a call may still be repeated
        if self.times is not None:
            self._times = self.times(self.device.random)
            self._next()

    def _next(self):
        time = next(self._times, None)
        if time is not None:
            self.device.at(time, self._arrive)

    def _arrive(self):
        self.offer()
        self._next()

    def offer(self, steps=None, repeats=None):
        """Makes a call now; returns it."""
        device, again = self.device, repeats is not None
        steps = self.lengths(device.random) if steps is None else steps
        deadline = None if self.timeout is None else device.now + self.timeout
        call = Call(self, steps, device.now, deadline, again)
        name = self.name if self.names is None else next(self.names)
        call.sequence = make_sequence(self.weights, Op.INFER, sink=call, deadline=deadline, caller=name)
        self.calls.append(call)
        try:
            device.scheduler.push(call.sequence, [Chunk(FRAMES[:steps], device.now, last=True)], device.now)
        except ServerError as error:
            if error.reason is Reason.DEADLINE_EXCEEDED:  # nothing that it could come again for
                call.end("dropped", device.now)
                return call
            if error.reason is not Reason.OVERLOADED:
                raise
            call.retry_after = error.retry_after
            call.end("refused", device.now)
            left = self.repeats if repeats is None else repeats
            if left:
                # no sooner than told, and not all at the same time
                wait = error.retry_after * device.random.uniform(1.0, 1.5)
                device.at(device.now + wait, lambda: self.offer(steps, left - 1))
            return call
        if self.patience is not None:
            device.at(device.now + self.patience(device.random), lambda: self._give_up(call))
        return call

    def _give_up(self, call):
        if call.outcome is None:
            self.device.scheduler.cancel(call.sequence)
            call.end("left", self.device.now)

    def ended(self, call):
        """Is told that a call has ended."""


@dataclass(eq=False)
class ClosedLoop(Caller):
    """Has `width` calls under way: the next begins when one has ended. One that was refused comes again after
    retry_after, and no sooner than `pause` seconds, since thousands that come every few milliseconds take long to
    simulate."""

    width: int = 1
    pause: float = 0.5
    until: float = 10.0

    def __post_init__(self):
        super().__post_init__()
        for _ in range(self.width):
            self.device.at(self.device.now, self.offer)

    def ended(self, call):
        device = self.device
        refused = call.retry_after is not None
        wait = max(self.pause, call.retry_after) * device.random.uniform(1.0, 1.5) if refused else 0.0
        if device.now + wait < self.until:
            device.at(device.now + wait, self.offer)
