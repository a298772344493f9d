"""What the live sessions of a client may hold together: one budget of bytes, of which each may take what is still free.

A chunk's frames count until they are written to the connection, its outputs from when it is sent until the caller
receives them. These are the dynamic thresholds of switches whose ports share a memory (Choudhury and Hahne, IEEE/ACM
Transactions on Networking 6(2), 1998): windows shrink as more sessions leave outputs unread, and something always stays
free for those that read. A session that holds nothing may take one chunk in any case, so none stalls another. Together
they hold at most the budget and a chunk each.
"""

import collections
import contextlib
import math
from collections.abc import Callable, Iterator

import numpy as np

from seqloom.types import ModelSpec, Outputs, TopK

CLIENT_BYTES = 64 << 20
CHUNK_BYTES = 512  # about what a chunk takes beside its elements

_LABEL_BYTES = 4


class Budget:
    """The bytes that one client's sessions share, on one event loop. free: below 0 where single chunks go beyond."""

    def __init__(self, size: float = CLIENT_BYTES) -> None:
        self.size = self.free = size
        self.waiting: dict[Share, tuple[int, Callable[[], None]]] = {}  # how much more each wants, and how it is told
        self.dropped: collections.deque[int] = collections.deque()  # what forgotten shares held: from any thread
        self._least = math.inf  # none of those that wait can go on before so much is free

    def look(self, changed: "Share") -> None:
        """Tells those that wait and may go on. changed: the share that has become smaller, or wants more now."""
        while self.dropped:
            self.free += self.dropped.popleft()
        if changed in self.waiting:
            self._least = min(self._least, changed.held + self.waiting[changed][0])
        if self._least > self.free:
            return
        free, self._least = self.free, math.inf
        for share, (size, notify) in self.waiting.items():
            need = share.held + size
            self._least = min(self._least, need)
            if need <= free:
                free -= size  # kept for this one: others would be told in vain
                notify()


class Share:
    """What one session holds of a budget, in bytes. It goes back when the share is forgotten."""

    __slots__ = ("_budget", "held")

    def __init__(self, budget: Budget) -> None:
        self.held = 0
        self._budget = budget

    def __del__(self) -> None:
        if self.held:
            self._budget.dropped.append(self.held)

    def admits(self, size: int) -> bool:
        """Whether it may take so much more."""
        return not self.held or self.held + size <= self._budget.free

    def take(self, size: int) -> bool:
        """Takes so much more, if it may; returns whether it does."""
        budget = self._budget
        if self.held and self.held + size > budget.free:
            return False
        self.held += size
        budget.free -= size
        return True

    def give_back(self, size: int) -> None:
        budget = self._budget
        self.held -= size
        budget.free += size
        if budget.waiting:
            budget.look(self)

    @contextlib.contextmanager
    def wanting(self, size: int, notify: Callable[[], None]) -> Iterator[None]:
        """While this lasts, notify() is called whenever it may take so much more."""
        self._budget.waiting[self] = size, notify
        self._budget.look(self)
        try:
            yield
        finally:
            del self._budget.waiting[self]
            self._budget.look(self)  # another may go on, now that this one has what it wants or has given up

    def told(self) -> str:
        """How much all hold, in words."""
        return f"{self._budget.size - self._budget.free:.0f} bytes of {self._budget.size:.0f}"


def step_bytes(spec: ModelSpec, outputs: Outputs) -> int:
    """Returns how many bytes the outputs of a live session's step take."""
    if outputs == "labels":
        return _LABEL_BYTES
    number = np.dtype(spec.dtype).itemsize
    if isinstance(outputs, TopK):
        return outputs.k * (number + _LABEL_BYTES)
    return number * (spec.hidden_size if outputs == "hidden" else spec.output_size)
