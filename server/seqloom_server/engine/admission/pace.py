"""How much longer work takes than was expected: a ratio that follows a noisy neighbour within a second."""

import math

_SECONDS = 0.5  # after which an observation counts for a third
_PRIOR = 0.01  # seconds of work that took as long as expected: all that counts after an idle while
_LEAST, _MOST = 0.2, 20.0
_STALE_SECONDS = 1.0
_KNOWN_SECONDS = 0.02


class Pace:
    """The ratio of the time that work took to the time expected, over about the last half second."""

    def __init__(self) -> None:
        self._expected = self._took = 0.0
        self._last = -math.inf
        self._until, self._ratio = -math.inf, 1.0  # the ratio is not computed anew before: many ask

    def observe(self, expected: float, took: float, now: float) -> None:
        """Adds work that was expected to take some seconds, and took others."""
        kept = math.exp(-max(0.0, now - self._last) / _SECONDS)
        self._expected = self._expected * kept + expected
        self._took = self._took * kept + took
        self._last = now
        self._until = -math.inf

    def ratio(self, now: float) -> float:
        """Returns the seconds that a second of expected work takes."""
        if now >= self._until:
            kept = math.exp(-max(0.0, now - self._last) / _SECONDS)
            ratio = (self._took * kept + _PRIOR) / (self._expected * kept + _PRIOR)
            self._until, self._ratio = now + _KNOWN_SECONDS, min(max(ratio, _LEAST), _MOST)
        return self._ratio

    def is_stale(self, now: float) -> bool:
        """Whether nothing was observed for a second."""
        return now - self._last > _STALE_SECONDS
