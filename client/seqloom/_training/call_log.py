"""The log of one client's calls on a run: their numbers, and which of them must be sent again after a failure.

It knows nothing of connections.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Call = TypeVar("Call")


@dataclass(slots=True, eq=False)
class LoggedCall(Generic[Call]):
    """A call and its number. size: bytes that it takes in memory.

    answered: whether a reply or an error of the server has arrived. step, calls: of its first reply, see RunReply.
    call: None after the server has refused it: only its number must be sent again.
    """

    number: int
    call: Call | None
    size: int
    answered: bool = False
    step: int = 0
    calls: Mapping[str, int] = field(default_factory=dict)


class CallLog(Generic[Call]):
    """Calls in the order of their numbers, from 1. size: bytes of all calls in the log.

    A call stays in the log until it is answered and the server reports it as durable. After a failure of the server,
    `lost` returns the calls to send again. acknowledged: calls up to this number are answered.
    """

    def __init__(self) -> None:
        self.size = 0
        self.acknowledged = 0
        self._durable = 0
        self._last = 0
        self._dropped = 0
        self._logged: dict[int, LoggedCall[Call]] = {}

    def __len__(self) -> int:
        return len(self._logged)

    def __iter__(self) -> Iterator[LoggedCall[Call]]:
        return iter(list(self._logged.values()))

    @property
    def settled(self) -> bool:
        """Whether every call is answered."""
        return self.acknowledged == self._last

    def add(self, call: Call, size: int) -> LoggedCall[Call]:
        """Adds a call that will be sent under the next number."""
        self._last += 1
        logged = self._logged[self._last] = LoggedCall(self._last, call, size)
        self.size += size
        return logged

    def answer(self, logged: LoggedCall[Call], step: int, calls: Mapping[str, int], durable: int) -> None:
        """Records a reply. durable: calls up to this number are durable.

        A second reply, to a call that was sent again, does not replace the first.
        """
        if not logged.answered:
            logged.answered, logged.step, logged.calls = True, step, calls
        self.settle(durable)

    def refuse(self, logged: LoggedCall[Call]) -> None:
        """Records that the server has refused the call, which changed nothing."""
        if not logged.answered:
            logged.answered, logged.call = True, None
            self.size -= logged.size
            logged.size = 0
        self.settle(self._durable)

    def settle(self, durable: int) -> None:
        """Removes the calls that are answered and durable. durable: calls up to this number; it never decreases."""
        self._durable = max(self._durable, durable)
        while (following := self._logged.get(self.acknowledged + 1)) is not None and following.answered:
            self.acknowledged += 1
        for number in list(self._logged):
            if number > min(self._durable, self.acknowledged):
                break
            self.size -= self._logged.pop(number).size
            self._dropped = number

    def lost(self, done: int) -> list[LoggedCall[Call]]:
        """Returns the calls to send again, in order, to a server that has done the calls up to `done`.

        They are the later calls, and those without a reply, to which the server replies again. Raises LookupError if
        the server has lost calls that were durable.
        """
        if done < self._dropped:
            raise LookupError(f"calls {done + 1} to {self._dropped}")
        return [logged for logged in self._logged.values() if logged.number > done or not logged.answered]
