"""The load of live sessions that have said their rate, and whether one more can be promised its delay.

The load is the larger of two shares of time: the device's, at the cost of full batches, and the event loop's, which for
small networks is full first. Sessions that have been admitted count by their rate, whether they send or not.
"""

import collections
import time
from collections.abc import Callable

from seqloom_server.engine.core.overload import ONE_SECOND, overloaded
from seqloom_server.engine.core.sequence import Sequence, Weights
from seqloom_server.errors import Overload

_WIDTH = 32  # members of a slice of live sessions that are near to what the device can do
_WINDOW = 0.25  # seconds over which the event loop is looked at
_GAIN = 0.3  # of a new window against all earlier ones
_STEP_SECONDS = 9e-6  # of the event loop for a live step, until it has been seen: a tenth of that of an entry of ten


class LiveLoad:
    """The rates of admitted sessions. most: the load that is promised. idle_seconds: that the event loop has waited, so
    far, for something to do; None where that is not known. clock: seconds."""

    def __init__(
        self,
        most: float,
        idle_seconds: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._rates: dict[Weights, float] = {}  # steps a second
        self._sessions: collections.Counter[Weights] = collections.Counter()
        self._steps = 0  # that live sessions have sent in this window
        self._other_work = False  # whether the event loop had anything else to do in it
        self._opening = False  # whether sessions were opened in it, which costs as much as many steps, but once
        self._window = (
            clock(),
            0.0 if idle_seconds is None else idle_seconds(),
        )  # its beginning, and idle seconds then
        self._loop_share = 0.0
        self._step_seconds = _STEP_SECONDS
        self._steps_a_second = 0.0

    def admit(self, sequence: Sequence) -> None:
        """Admits a session with a rate. Raises ServerError OVERLOADED."""
        load = self.load(sequence.weights, sequence.rate)
        if load > self._most:
            raise overloaded(
                f"live sessions with a rate would need {load:.0%} of the device or of the event loop: expected at most "
                f"{self._most:.0%} (max_live_load)",
                ONE_SECOND,
                Overload.LIVE_LOAD,
            )
        self._rates[sequence.weights] = self._rates.get(sequence.weights, 0.0) + sequence.rate
        self._sessions[sequence.weights] += 1

    def end(self, sequence: Sequence) -> None:
        """Counts the end of an admitted session."""
        self._sessions[sequence.weights] -= 1
        self._rates[sequence.weights] -= sequence.rate
        if not self._sessions[sequence.weights]:  # no rounding errors are kept
            del self._sessions[sequence.weights], self._rates[sequence.weights]

    def sent(self, steps: int) -> None:
        """Counts steps that live sessions have sent."""
        self._steps += steps

    def other_work(self) -> None:
        """Notes that the event loop has something else to do."""
        self._other_work = True

    def opening(self) -> None:
        """Notes that a live session is opened, or refused."""
        self._opening = True

    def load(self, weights: Weights | None = None, rate: float = 0.0) -> float:
        """Returns the load with one more session of a rate, as a share of the time there is."""
        self.look(self._clock())
        rates = self._rates if weights is None else {**self._rates, weights: self._rates.get(weights, 0.0) + rate}
        device = sum(each * weights.cost.cell_seconds(_WIDTH) for weights, each in rates.items())
        if self._idle_seconds is None:
            return device
        silent = max(0.0, sum(rates.values()) - self._steps_a_second)  # admitted, and not seen in the loop's share yet
        return max(device, self._loop_share + silent * self._step_seconds)

    def look(self, now: float) -> None:
        """Looks at the event loop's time since the last window, if that is long enough ago. To be called with all work:
        a long window is one without."""
        begun, idle_before = self._window
        seconds = now - begun
        if seconds < _WINDOW or self._idle_seconds is None:
            return
        idle = self._idle_seconds()
        busy = min(max(0.0, seconds - (idle - idle_before)), seconds)
        if self._opening:  # which is over soon: only the steps are counted, or those who are refused would keep it full
            busy = min(busy, self._steps * self._step_seconds)
        gain = min(1.0, _GAIN * seconds / _WINDOW)
        self._loop_share += gain * (busy / seconds - self._loop_share)
        self._steps_a_second += gain * (self._steps / seconds - self._steps_a_second)
        if self._steps and not self._other_work and not self._opening:
            self._step_seconds += gain * (busy / self._steps - self._step_seconds)
        self._window, self._steps, self._other_work, self._opening = (now, idle), 0, False, False
