"""Whether a new live session is held back for those that are resumed after a failure, which are admitted before it.

Who was lost comes again within a second or two, as soon as there is a server: while they come, as many places are kept
free as came in the last second; and while one that was refused waits to come again, nobody new takes the next place.
That is bounded, whoever says that it is resumed: new ones are held back for 5 s, and then for 5 s they are not. What
one caller resumes counts for 5 s from the first of it, and then not for a minute, so that nobody who only says that it
is resumed goes on to hold others back.
"""

import math

_LATELY = 1.0  # seconds in which those that came are taken to be as many as will come in the next ones
_AGAIN = 2.0  # seconds within which one that was refused comes again
_LONGEST, _PAUSE = 5.0, 5.0  # seconds for which new ones are held back at most, and then for which they are not
_RESUMES, _RESTS = 5.0, 60.0  # seconds for which what one caller resumes counts, and then for which it does not
_MOST_CALLERS = 4096  # of which it is remembered; of more nothing counts


class Resumptions:
    """The live sessions that were resumed lately. Time is an argument."""

    def __init__(self) -> None:
        self._came = self._came_before = 0  # streams in this second, and in the one before
        self._second = -math.inf  # when it began
        self._refused_at = -math.inf
        self._held_until = -math.inf
        self._since: dict[str, float] = {}  # of callers, when what they resume began to count, the first first

    def came(self, streams: int, caller: str, now: float) -> None:
        """Counts one of a caller that came, of so many streams, whether there is room or not."""
        self._age(now)
        if self._counts(caller, now):
            self._came += streams

    def refused(self, caller: str, now: float) -> None:
        """Notes that there was no room for one of a caller, though there could be later."""
        if self._counts(caller, now):
            self._refused_at = now

    def hold_back(self, free: float, added: int, now: float) -> bool:
        """Returns whether a new one is held back. free: places, of which it would take `added`."""
        self._age(now)
        waits = now - self._refused_at < _AGAIN
        if not waits and free - added >= self._came + self._came_before:
            return False
        if now >= self._held_until + _PAUSE:  # the last time is over, and so is the pause
            self._held_until = now + _LONGEST
        return now < self._held_until

    def _counts(self, caller: str, now: float) -> bool:
        """Returns whether what a caller resumes counts now, which it does from the first on, for a while."""
        since = self._since.get(caller)
        if since is not None and now < since + _RESUMES + _RESTS:
            return now < since + _RESUMES
        self._since.pop(caller, None)
        while self._since and now >= next(iter(self._since.values())) + _RESUMES + _RESTS:
            del self._since[next(iter(self._since))]
        if len(self._since) >= _MOST_CALLERS:
            return False
        self._since[caller] = now
        return True

    def _age(self, now: float) -> None:
        if now - self._second >= _LATELY:
            self._came_before = self._came if now - self._second < 2 * _LATELY else 0
            self._came, self._second = 0, now
