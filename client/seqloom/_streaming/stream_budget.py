"""The memory budget that all live streams of a client share, in bytes.

A chunk's frames count against it until they are written to the connection, its outputs from the moment it is sent until
the caller receives them. A stream may take as much as is still free: the dynamic thresholds of switches whose ports
share a memory (Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). So streams may send less ahead as
more of them leave outputs unread, and some of the budget always stays free for streams that read. A stream that holds
nothing may always take one chunk, so no stream can block another. Together they hold at most the budget plus one chunk
each.
"""

import collections
import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from seqloom.types import ModelSpec, Outputs, TopK

CLIENT_BYTES = 64 << 20
CHUNK_BYTES = 512  # the approximate overhead of a chunk, beside its elements

_LABEL_BYTES = 4


class StreamBudget:
    """The bytes that the sessions of one client share, on one event loop.

    free: bytes that no session holds; negative if sessions that held nothing took a chunk each.
    """

    def __init__(self, size: float = CLIENT_BYTES) -> None:
        self.size = self.free = size
        self.waiting: dict[BudgetShare, BudgetWait] = {}
        # bytes of shares that were garbage-collected, by any thread
        self.forgotten: collections.deque[int] = collections.deque()
        # a heap of waiting shares by how many bytes must be free before they can go on; some entries are out of date
        self._needs: list[tuple[int, int, BudgetShare]] = []
        self._updates = 0

    def update_wait(self, share: "BudgetShare") -> None:
        """Records how many bytes must be free before a waiting share is notified."""
        wait = self.waiting.get(share)
        if wait is None or wait.required == share.held + wait.size:
            return
        if len(self._needs) > 2 * len(self.waiting) + 16:  # most of them are out of date
            self._needs = [each for each in self._needs if self._is_current(*each)]
            heapq.heapify(self._needs)
        wait.required = share.held + wait.size
        self._updates += 1
        heapq.heappush(self._needs, (wait.required, self._updates, share))

    def notify_waiting(self) -> None:
        """Notifies the waiting shares that can go on, those that need least first."""
        while self.forgotten:
            self.free += self.forgotten.popleft()
        free = self.free
        while self._needs and self._needs[0][0] <= free:
            required = heapq.heappop(self._needs)
            if self._is_current(*required):
                wait = self.waiting[required[2]]
                free -= wait.size  # reserved for this share: others would be notified in vain
                wait.required = None
                wait.notify()

    def _is_current(self, required: int, _: int, share: "BudgetShare") -> bool:
        return share in self.waiting and self.waiting[share].required == required


class BudgetShare:
    """The bytes that one session holds of a budget. They are released when the share is garbage-collected."""

    __slots__ = ("_budget", "held")

    def __init__(self, budget: StreamBudget) -> None:
        self.held = 0
        self._budget = budget

    def __del__(self) -> None:
        if self.held:
            self._budget.forgotten.append(self.held)

    def has_room(self, size: int) -> bool:
        """Returns whether `size` more bytes can be taken. If not, and the share waits for them, it will be notified."""
        if not self.held or self.held + size <= self._budget.free:
            return True
        self._budget.update_wait(self)
        return False

    def take(self, size: int) -> bool:
        """Takes `size` more bytes if they are available; returns whether it did."""
        budget = self._budget
        if self.held and self.held + size > budget.free:
            return False
        self.held += size
        budget.free -= size
        return True

    def give_back(self, size: int) -> None:
        """Returns bytes to the budget."""
        budget = self._budget
        self.held -= size
        budget.free += size
        if budget.waiting:
            budget.update_wait(self)
            budget.notify_waiting()

    def waiting_for(self, size: int, notify: Callable[[], None]) -> "BudgetWait":
        """Returns a context manager during which notify() is called when `size` more bytes are available."""
        return BudgetWait(self._budget, self, size, notify)

    def describe(self) -> str:
        """Returns how much all sessions hold, for an error message."""
        return f"{self._budget.size - self._budget.free:.0f} bytes of {self._budget.size:.0f}"


@dataclass(slots=True)
class BudgetWait:
    """A share's wait for `size` more bytes. required: bytes that must be free, as recorded last; None once notified."""

    budget: StreamBudget
    share: BudgetShare
    size: int
    notify: Callable[[], None]
    required: int | None = None

    def __enter__(self) -> None:
        self.budget.waiting[self.share] = self
        self.budget.notify_waiting()

    def __exit__(self, *_: object) -> None:
        del self.budget.waiting[self.share]
        self.budget.notify_waiting()  # another share may go on, as this one has its bytes or has given up


def state_bytes(spec: ModelSpec) -> int:
    """Returns the size of the state of one sequence, in bytes."""
    return np.dtype(spec.dtype).itemsize * sum(rows * width for rows, width in spec.state_shapes().values())


def step_bytes(spec: ModelSpec, outputs: Outputs) -> int:
    """Returns the size of the outputs of one step, in bytes."""
    if outputs == "labels":
        return _LABEL_BYTES
    number = np.dtype(spec.dtype).itemsize
    if isinstance(outputs, TopK):
        return outputs.k * (number + _LABEL_BYTES)
    return number * (spec.hidden_size if outputs == "hidden" else spec.output_size)
