"""The deadlines of sequences that wait, earliest first."""

import heapq

from seqloom_server.engine.request import Sequence


class Deadlines:
    """Watches sequences until they are forgotten. A sequence that is forgotten is not kept alive from here."""

    def __init__(self) -> None:
        self._watched: dict[int, Sequence] = {}
        self._heap: list[tuple[float, int]] = []  # also of forgotten ones, but not more of these than of the others

    def __len__(self) -> int:
        return len(self._watched)

    def watch(self, sequence: Sequence) -> None:
        """Watches a sequence that has a deadline; once more changes nothing."""
        if sequence.deadline is not None and sequence.id not in self._watched:
            self._watched[sequence.id] = sequence
            heapq.heappush(self._heap, (sequence.deadline, sequence.id))

    def forget(self, sequence: Sequence) -> None:
        """Stops watching a sequence, if it was watched."""
        if self._watched.pop(sequence.id, None) is not None and len(self._heap) > 2 * len(self._watched) + 64:
            self._heap = [entry for entry in self._heap if entry[1] in self._watched]
            heapq.heapify(self._heap)

    def next(self) -> float | None:
        """When the earliest deadline passes."""
        while self._heap and self._heap[0][1] not in self._watched:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def passed(self, now: float) -> list[Sequence]:
        """Returns the sequences whose deadline has passed, and watches them no more."""
        passed = []
        while (earliest := self.next()) is not None and earliest <= now:
            passed.append(self._watched.pop(heapq.heappop(self._heap)[1]))
        return passed
