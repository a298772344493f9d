"""An event loop that knows how long it has waited for something to do, and so how busy it is."""

import asyncio
import selectors
import time
from typing import Any


class TimedSelector(selectors.DefaultSelector):
    """A selector that adds up the seconds that it has waited."""

    def __init__(self) -> None:
        super().__init__()
        self.waited = 0.0

    def select(self, timeout: float | None = None) -> Any:
        """Waits for events, as its base class does."""
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        start = time.perf_counter()
        try:
            return super().select(timeout)
        finally:
            self.waited += time.perf_counter() - start


class TimedLoop(asyncio.SelectorEventLoop):
    """An event loop over a TimedSelector."""

    def __init__(self) -> None:
        selector = TimedSelector()
        super().__init__(selector)
        self._timed_selector = selector

    def idle_seconds(self) -> float:
        """Returns the seconds that the loop has waited for something to do."""
        return self._timed_selector.waited
