"""A heap of deadlines of queued work, earliest first."""

import heapq
from typing import Generic, Protocol, TypeVar

from seqloom_server.errors import Reason, ServerError


class HasDeadline(Protocol):
    """An item with an optional deadline, by time.monotonic(). id: unique."""

    id: int
    deadline: float | None


T = TypeVar("T", bound=HasDeadline)


def deadline_passed() -> ServerError:
    """Returns the error of admitted work that cannot meet its deadline any more."""
    return ServerError(
        Reason.DEADLINE_EXCEEDED, "the deadline passed, or could not be met any more, while the request was queued"
    )


class Deadlines(Generic[T]):
    """The items with a deadline that are watched. Forgotten items are not kept alive."""

    def __init__(self) -> None:
        self._watched: dict[int, T] = {}
        self._heap: list[tuple[float, int]] = []  # forgotten items included, until they are more than half

    def __len__(self) -> int:
        return len(self._watched)

    def watch(self, item: T, needs: float = 0.0) -> None:
        """Watches an item, if it has a deadline and is not watched yet. needs: seconds before its deadline."""
        if item.deadline is not None and item.id not in self._watched:
            self._watched[item.id] = item
            heapq.heappush(self._heap, (item.deadline - needs, item.id))

    def forget(self, item: T) -> None:
        """Stops watching an item, if it was watched."""
        if self._watched.pop(item.id, None) is not None and len(self._heap) > 2 * len(self._watched) + 64:
            self._heap = [entry for entry in self._heap if entry[1] in self._watched]
            heapq.heapify(self._heap)

    def next(self) -> float | None:
        """Returns the earliest deadline, less what its item needs, or None."""
        while self._heap and self._heap[0][1] not in self._watched:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def passed(self, now: float) -> list[T]:
        """Returns the items whose deadline, less what they need, has passed, and stops watching them."""
        passed = []
        while (earliest := self.next()) is not None and earliest <= now:
            passed.append(self._watched.pop(heapq.heappop(self._heap)[1]))
        return passed
