"""The load of live sessions that have said their rate, and whether one more can be promised its delay.

The load is the larger of two shares of time: the device's, at the cost of full batches, and the event loop's, which for
small networks is full first. Sessions that have been admitted count by their rate, whether they send or not. Opening
them costs the event loop time as well, but only once, so that is told apart: else those who are refused would keep it
full.
"""

import collections
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from seqloom_server.engine.core.overload import ONE_SECOND, overloaded
from seqloom_server.engine.core.sequence import Sequence, Weights
from seqloom_server.errors import Overload

_WIDTH = 32  # members of a slice of live sessions that are near to what the device can do
_WINDOW = 0.25  # seconds over which the event loop is looked at
_GAIN = 0.3  # of a new window against all earlier ones
_STEP_SECONDS = 9e-6  # of the event loop for a live step, until it has been seen: a tenth of that of an entry of ten
_OPENING_SECONDS = 1.5e-4  # of the event loop for a session that is opened, or refused, about
_FEW_OPENINGS = 0.05  # of a window, which shows what steps cost while opening took no more of it
_LONGEST_BLIND = 2.0  # seconds without such a window, after which any other shows it, too
_ENOUGH_STEPS, _MOST_LEARNED = 1000, 0.5  # of a window that shows it, and of what it shows: fewer steps cost more each
_MORE = 0.7  # of what steps cost so far is what more of them cost, as messages become fuller
# what a step of a group costs the event loop, in steps of a single stream: for itself, and for its streams
_GROUP_STEPS, _STREAMS_A_STEP = 20.0, 35.0
_NOTHING: npt.NDArray[np.float64] = np.zeros(3)
LOOP_PART = 0.83  # of the event loop's share counts: the loop may be fuller than the device before anything is late


class LiveLoad:
    """The rates of admitted sessions. most: the load that is promised.

    idle_seconds: that the event loop has waited, so far, for something to do; None where that is not known. pace: at a
    time, the seconds that a second of slices takes, as was expected of them. clock: seconds.
    """

    def __init__(
        self,
        most: float,
        idle_seconds: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        pace: Callable[[float], float] = lambda _: 1.0,
    ) -> None:
        self._most = most
        self._pace = pace
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._demands: dict[Weights, npt.NDArray[np.float64]] = {}
        self._sessions: collections.Counter[Weights] = collections.Counter()
        # that live sessions, and those with a rate, have sent in this window, as the event loop has them
        self._steps = self._rated_steps = 0.0
        self._other_work = False  # whether the event loop had anything else to do in it
        self._openings = 0  # sessions that were opened in it, or refused
        self._window = (
            clock(),
            0.0 if idle_seconds is None else idle_seconds(),
        )  # its beginning, and idle seconds then
        self._loop_share = 0.0
        self._step_seconds = _STEP_SECONDS
        self._blind = 0.0  # seconds since it was last seen what steps cost, in which there were some
        self._rated_steps_a_second = 0.0

    def admit(self, sequence: Sequence) -> None:
        """Admits a session with a rate. Raises ServerError OVERLOADED."""
        load = self.load(sequence)
        if load > self._most:
            raise overloaded(
                f"live sessions with a rate would need {load:.0%} of the device or of the event loop: expected at most "
                f"{self._most:.0%} (max_live_load)",
                ONE_SECOND,
                Overload.LIVE_LOAD,
            )
        self._demands[sequence.weights] = self._demands.get(sequence.weights, _NOTHING) + _demand(sequence)
        self._sessions[sequence.weights] += 1

    def could_admit(self, sequence: Sequence) -> bool:
        """Returns whether there would be room for a session if it were the only one."""
        if not sequence.rate:
            return True
        rows, steps, loop = _demand(sequence)
        cost = sequence.weights.cost
        loop_load = 0.0 if self._idle_seconds is None else LOOP_PART * loop * _MORE * self._least_seconds
        return bool(max(rows * cost.per_cell + steps * cost.per_step, loop_load) <= self._most)

    def end(self, sequence: Sequence) -> None:
        """Counts the end of an admitted session."""
        self._sessions[sequence.weights] -= 1
        self._demands[sequence.weights] -= _demand(sequence)
        if not self._sessions[sequence.weights]:  # no rounding errors are kept
            del self._sessions[sequence.weights], self._demands[sequence.weights]

    def sent(self, steps: float, *, rated: bool = True) -> None:
        """Counts steps that live sessions have sent, as the event loop has them. rated: whether they have a rate."""
        self._steps += steps
        if rated:
            self._rated_steps += steps

    def other_work(self) -> None:
        """Notes that the event loop has something else to do."""
        self._other_work = True

    def opening(self) -> None:
        """Notes that a live session is opened, or refused."""
        self._openings += 1

    def load(self, more: Sequence | None = None) -> float:
        """Returns the load, with one more session of a rate if given, as a share of the time there is."""
        now = self._clock()
        self.look(now)
        demands = self._demands
        if more is not None:
            demands = {**demands, more.weights: demands.get(more.weights, _NOTHING) + _demand(more)}
        device: float = sum(
            each[0] * weights.cost.per_cell + each[1] * weights.cost.per_step for weights, each in demands.items()
        )
        device *= max(1.0, self._pace(now))  # the callers' messages may have taken the cores from it
        if self._idle_seconds is None:
            return device
        promised: float = sum(each[2] for each in demands.values())
        silent = max(0.0, promised - self._rated_steps_a_second)  # admitted, and not seen in the loop's share yet
        return max(device, LOOP_PART * (self._loop_share + silent * _MORE * self._least_seconds))

    @property
    def _least_seconds(self) -> float:
        """What a step is taken to cost before it is seen, and beside openings: while all goes well it costs less."""
        return max(self._step_seconds, _STEP_SECONDS)

    def look(self, now: float) -> None:
        """Looks at the event loop's time since the last window, if that is long enough ago. To be called with all work:
        a long window is one without."""
        begun, idle_before = self._window
        seconds = now - begun
        if seconds < _WINDOW or self._idle_seconds is None:
            return
        idle = self._idle_seconds()
        busy = min(max(0.0, seconds - (idle - idle_before)), seconds)
        opening = self._openings * _OPENING_SECONDS
        gain = min(1.0, _GAIN * seconds / _WINDOW)
        lasting = max(0.0, busy - opening)
        if opening <= _FEW_OPENINGS * seconds or self._blind > _LONGEST_BLIND:
            if self._steps >= _ENOUGH_STEPS and not self._other_work:
                learned = min(_MOST_LEARNED, _GAIN * (self._blind + seconds) / _WINDOW)
                self._step_seconds += learned * (lasting / self._steps - self._step_seconds)
                self._blind = 0.0
        else:
            lasting = min(busy, self._steps * self._least_seconds)
            self._blind += seconds if self._steps else 0.0
        self._loop_share += gain * (lasting / seconds - self._loop_share)
        self._rated_steps_a_second += gain * (self._rated_steps / seconds - self._rated_steps_a_second)
        self._window, self._other_work = (now, idle), False
        self._steps = self._rated_steps = 0.0
        self._openings = 0


def _demand(sequence: Sequence) -> npt.NDArray[np.float64]:
    """Returns what a session promises to send in a second: rows, steps of the device, and steps as the event loop has
    them. Single streams are taken to share the device's steps with others."""
    rows = sequence.rate * sequence.width
    return np.array((rows, rows / max(_WIDTH, sequence.width), sequence.rate * loop_steps(sequence)))


def loop_steps(sequence: Sequence) -> float:
    """Returns what one step of a session costs the event loop, in steps of a single stream."""
    return 1.0 if sequence.group is None else _GROUP_STEPS + sequence.width / _STREAMS_A_STEP
