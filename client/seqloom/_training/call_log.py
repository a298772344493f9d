"""The calls of one client on a run, kept until the server could not lose them: their numbers, and what to send again.

Knows nothing of connections: the delivery of runs asks it what to do.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Request = TypeVar("Request")


@dataclass(slots=True, eq=False)
class Kept(Generic[Request]):
    """One call under its number. size: bytes that keeping it takes.

    answered: whether a reply or a refusal has come. step: what its reply named, 0 before. calls: of a step's reply.
    request: None once it was refused: it changed nothing, and only its number is left to be used up again.
    """

    number: int
    request: Request | None
    size: int
    answered: bool = False
    step: int = 0
    calls: Mapping[str, int] = field(default_factory=dict)


class CallLog(Generic[Request]):
    """Calls in the order of their numbers, from 1. size: bytes of all that are kept.

    A call is kept until it was answered and the server said that it is durable. After a server's death `lost` tells
    which calls it must be sent again.
    """

    def __init__(self) -> None:
        self.size = 0
        self.acknowledged = 0
        self._durable = 0
        self._last = 0
        self._dropped = 0
        self._kept: dict[int, Kept[Request]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Kept[Request]]:
        return iter(list(self._kept.values()))

    @property
    def settled(self) -> bool:
        """Whether every call was answered."""
        return self.acknowledged == self._last

    def add(self, request: Request, size: int) -> Kept[Request]:
        """Gives the next number to a call that is about to be sent."""
        self._last += 1
        kept = self._kept[self._last] = Kept(self._last, request, size)
        self.size += size
        return kept

    def answer(self, kept: Kept[Request], step: int, calls: Mapping[str, int], durable: int) -> None:
        """Takes a reply: the step it named, a step's table of calls, and how far the client's calls are durable.

        A repeated reply, to a call that was sent again, changes nothing of the first.
        """
        if not kept.answered:
            kept.answered, kept.step, kept.calls = True, step, calls
        self.settle(durable)

    def refuse(self, kept: Kept[Request]) -> None:
        """Takes an error that is the call's answer: it is done, and changed nothing."""
        if not kept.answered:
            kept.answered, kept.request = True, None
            self.size -= kept.size
            kept.size = 0
        self.settle(self._durable)

    def settle(self, durable: int) -> None:
        """Drops what is answered and durable; durable never goes down."""
        self._durable = max(self._durable, durable)
        while (following := self._kept.get(self.acknowledged + 1)) is not None and following.answered:
            self.acknowledged += 1
        for number in list(self._kept):
            if number > min(self._durable, self.acknowledged):
                break
            self.size -= self._kept.pop(number).size
            self._dropped = number

    def lost(self, done: int) -> list[Kept[Request]]:
        """What must be sent again, in order, to a server that has done the calls up to `done`.

        Those beyond it, and those whose reply has not come: they get it again. Raises LookupError where the server
        lacks calls that it had called durable.
        """
        if done < self._dropped:
            raise LookupError(f"calls {done + 1} to {self._dropped}")
        return [kept for kept in self._kept.values() if kept.number > done or not kept.answered]
