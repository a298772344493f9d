"""What one token uses, over all its connections: its open live streams, and its steps a second.

Whole sequences and training calls beyond the steps a second are refused. A live stream would lose its state, so its
call is read more slowly instead, and `send` waits in the client. So it is with a whole sequence that has begun.
"""

import asyncio
import time

from seqloom_server.engine.core.overload import ONE_SECOND, overloaded
from seqloom_server.errors import Overload, Reason, ServerError
from seqloom_server.rpc.security.tokens import Token

_BURST_SECONDS = 1.0  # of steps that may come at once
_LOOK_SECONDS = 1.0  # until who waits looks again: the limit may have been raised


class TokenUse:
    """One token's use, which lasts while its limits change in the file. token: as the file says it now."""

    def __init__(self, token: Token) -> None:
        self._token = token
        self.streams = 0
        self.begun = 0  # whole sequences that did not end with their first entry
        self._owed = 0.0  # steps that came before their time, at _owed_at by time.monotonic()
        self._owed_at = 0.0

    @property
    def token(self) -> Token:
        return self._token

    @token.setter
    def token(self, token: Token) -> None:
        self._settle()  # time that has passed counts at the old rate, what is owed at the new one
        self._token = token

    @property
    def limits_steps(self) -> bool:
        """Whether its steps are counted."""
        return self.token.steps_per_second is not None

    def open(self, streams: int) -> None:
        """Opens live streams. Raises OVERLOADED if more than `max_streams` would be open, OVER_LIMIT if these alone are
        more."""
        most = self.token.max_streams
        if most is not None and streams > most:
            raise ServerError(Reason.OVER_LIMIT, f"{streams} streams: expected at most {most}, the limit of the token")
        if most is not None and self.streams + streams > most:
            raise overloaded(
                f"stream limit of the token reached: {self.streams} of {most} are open", ONE_SECOND, Overload.TOKEN
            )
        self.streams += streams

    def close(self, streams: int) -> None:
        """Takes back live streams that have ended."""
        self.streams -= streams

    def begin(self, least: int) -> None:
        """Begins a whole sequence that may come as slowly as a live stream. Raises OVERLOADED beyond `max_streams` of
        them; least: permitted in any case."""
        most = self.token.max_streams
        if most is not None and self.begun >= max(most, least):
            raise overloaded(
                f"limit of the token reached: {self.begun} whole sequences have begun and not ended",
                ONE_SECOND,
                Overload.TOKEN,
            )
        self.begun += 1

    def finish(self) -> None:
        """Takes back a whole sequence that has ended."""
        self.begun -= 1

    def check_steps(self) -> None:
        """Raises OVERLOADED while the token is ahead of its steps a second."""
        ahead = self.ahead()
        if ahead > 0:
            raise overloaded(
                f"step limit of the token reached: {self.token.steps_per_second:g} a second", ahead, Overload.TOKEN
            )

    def add_steps(self, steps: int) -> None:
        """Counts steps that were let in."""
        if self.limits_steps:
            self._settle()
            self._owed += steps

    def ahead(self) -> float:
        """Returns the seconds after which more steps may come; 0 if they may now."""
        rate = self._token.steps_per_second
        return 0.0 if rate is None else max(0.0, self._owed_at_rate(rate) / rate - _BURST_SECONDS)

    async def wait_for_steps(self) -> None:
        """Returns once more steps may come. Of many that wait one goes on, if it counts its steps before it awaits."""
        while (seconds := self.ahead()) > 0:  # noqa: ASYNC110 - a pause, not a poll
            await asyncio.sleep(min(seconds, _LOOK_SECONDS))

    def _owed_at_rate(self, rate: float) -> float:
        return max(0.0, self._owed - (time.monotonic() - self._owed_at) * rate)

    def _settle(self) -> None:
        rate = self._token.steps_per_second
        self._owed = 0.0 if rate is None else self._owed_at_rate(rate)
        self._owed_at = time.monotonic()
