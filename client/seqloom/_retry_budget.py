"""The budget of a client's repeats after Overloaded, so that repeats do not become the load."""

_REPEAT = 10  # what a repeat costs, in calls
_MOST = 10 * _REPEAT  # that can be saved up, in calls, and what a client starts with


class RetryBudget:
    """A token bucket: while a client makes n calls, it repeats at most 10 + n/10 times.

    This holds from any moment on, as no more than 10 repeats can be saved up: a client that was never refused does not
    answer a sudden overload with many. Everything is counted in calls, as integers: ten times 0.1 is not 1.
    """

    def __init__(self) -> None:
        self._calls = _MOST

    def add_call(self) -> None:
        """Counts a call."""
        if self._calls < _MOST:
            self._calls += 1

    def take(self) -> bool:
        """Takes one repeat, if any is left; returns whether it did."""
        if self._calls < _REPEAT:
            return False
        self._calls -= _REPEAT
        return True

    def give_back(self) -> None:
        """Gives one repeat back, which was taken and not sent."""
        self._calls = min(self._calls + _REPEAT, _MOST)
