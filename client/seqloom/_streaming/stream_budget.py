"""What the live sessions of a client may hold together: one budget of bytes, of which each may take what is still free.

A chunk's frames count until they are written to the connection, its outputs from when it is sent until the caller
receives them. These are the dynamic thresholds of switches whose ports share a memory (Choudhury and Hahne, IEEE/ACM
Transactions on Networking 6(2), 1998): windows shrink as more sessions leave outputs unread, and something always stays
free for those that read. A session that holds nothing may take one chunk in any case, so none stalls another. Together
they hold at most the budget and a chunk each.
"""

import collections
import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from seqloom.types import ModelSpec, Outputs, TopK

CLIENT_BYTES = 64 << 20
CHUNK_BYTES = 512  # about what a chunk takes beside its elements

_LABEL_BYTES = 4


class StreamBudget:
    """The bytes that one client's sessions share, on one event loop. free: below 0 where single chunks go beyond."""

    def __init__(self, size: float = CLIENT_BYTES) -> None:
        self.size = self.free = size
        self.waiting: dict[Share, Want] = {}
        self.dropped: collections.deque[int] = collections.deque()  # what forgotten shares held: from any thread
        self._needs: list[tuple[int, int, Share]] = []  # a heap of what must be free before one that waits can go on
        self._noted = 0

    def note(self, share: "Share") -> None:
        """Notes what a share that waits needs now, or still: it is told when so much is free."""
        want = self.waiting.get(share)
        if want is None or want.need == share.held + want.size:
            return
        if len(self._needs) > 2 * len(self.waiting) + 16:  # most of them are out of date
            self._needs = [each for each in self._needs if self._wanted(*each)]
            heapq.heapify(self._needs)
        want.need = share.held + want.size
        self._noted += 1
        heapq.heappush(self._needs, (want.need, self._noted, share))

    def look(self) -> None:
        """Tells those that wait and can go on."""
        while self.dropped:
            self.free += self.dropped.popleft()
        free = self.free
        while self._needs and self._needs[0][0] <= free:
            need = heapq.heappop(self._needs)
            if self._wanted(*need):
                want = self.waiting[need[2]]
                free -= want.size  # kept for this one: others would be told in vain
                want.need = None
                want.notify()

    def _wanted(self, need: int, _: int, share: "Share") -> bool:
        return share in self.waiting and self.waiting[share].need == need


class Share:
    """What one session holds of a budget, in bytes. It goes back when the share is forgotten."""

    __slots__ = ("_budget", "held")

    def __init__(self, budget: StreamBudget) -> None:
        self.held = 0
        self._budget = budget

    def __del__(self) -> None:
        if self.held:
            self._budget.dropped.append(self.held)

    def admits(self, size: int) -> bool:
        """Whether it may take so much more; where it waits for that, it is told as soon as it may."""
        if not self.held or self.held + size <= self._budget.free:
            return True
        self._budget.note(self)
        return False

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
            budget.note(self)
            budget.look()

    def wanting(self, size: int, notify: Callable[[], None]) -> "Want":
        """While its block lasts, notify() is called when it may take so much more."""
        return Want(self._budget, self, size, notify)

    def describe(self) -> str:
        """How much all hold, in words."""
        return f"{self._budget.size - self._budget.free:.0f} bytes of {self._budget.size:.0f}"


@dataclass(slots=True)
class Want:
    """What a share that waits wants more. need: what must be free for it, as noted last; None once it was told."""

    budget: StreamBudget
    share: Share
    size: int
    notify: Callable[[], None]
    need: int | None = None

    def __enter__(self) -> None:
        self.budget.waiting[self.share] = self
        self.budget.look()

    def __exit__(self, *_: object) -> None:
        del self.budget.waiting[self.share]
        self.budget.look()  # another may go on, now that this one has what it wants or has given up


def step_bytes(spec: ModelSpec, outputs: Outputs) -> int:
    """Returns how many bytes the outputs of a live session's step take."""
    if outputs == "labels":
        return _LABEL_BYTES
    number = np.dtype(spec.dtype).itemsize
    if isinstance(outputs, TopK):
        return outputs.k * (number + _LABEL_BYTES)
    return number * (spec.hidden_size if outputs == "hidden" else spec.output_size)
