"""Rounds in which callers take turns, as in deficit round robin (Shreedhar and Varghese, 1995).

Each round is worth a quantum of device time, and who has been given more than others waits for the next round. A caller
whose long sequences and whose others both wait (two lanes) is one caller: each of the two counts twice.

Who comes begins where one would be that had an equal part all the time: the virtual time of Parekh and Gallager (1993).
Began it where the one is that was given least, whoever was given more would wait for as long as others came anew.
"""

import heapq
from dataclasses import dataclass

from seqloom_server.engine.core.sequence import Lane

_KEPT_ACCOUNTS = 64


@dataclass(slots=True, eq=False)
class _Account:
    """The device time given to a lane, in seconds, and under how many versions of weights it has something queued.

    It is kept for a while when nothing is: who comes and goes gets no more than who stays. listed: whether it is in the
    heap.
    """

    served: float
    queues: int = 0
    listed: bool = False


class CallerRounds:
    """The accounts of lanes. quantum: seconds. active: lanes that have something queued."""

    def __init__(self, quantum: float) -> None:
        self._quantum = quantum
        self._accounts: dict[Lane, _Account] = {}
        # by what they had been given when they were put here, which has only grown since
        self._heap: list[tuple[float, int, _Account]] = []
        self._count = 0
        self._reached = 0.0  # what every active lane was given
        self._begins = 0.0  # where one that joins begins: what a lane was given that had an equal part
        self._charged = 0.0  # since that was found out: who comes before a slice has ended owes nothing of it
        self.active = 0

    def join(self, lane: Lane) -> None:
        """Counts that a lane has something queued under one more version of weights."""
        account = self._accounts.get(lane)
        if account is None:
            account = self._accounts[lane] = _Account(self._begins)
        if not account.queues:
            account.served = max(account.served, self._begins)
            self.active += 1
            if not account.listed:
                self._list(account)
        account.queues += 1

    def leave(self, lane: Lane) -> None:
        """Counts that a lane has nothing queued any more under a version of weights."""
        account = self._accounts[lane]
        account.queues -= 1
        if not account.queues:
            self.active -= 1
            if len(self._accounts) > 2 * self.active + _KEPT_ACCOUNTS:
                self._forget()

    def charge(self, lane: Lane, seconds: float) -> None:
        """Counts device time given to an active lane."""
        sibling = self._accounts.get((lane[0], not lane[1])) if self.active > 1 else None
        counted = 2 * seconds if sibling is not None and sibling.queues else seconds
        self._accounts[lane].served += counted
        self._charged += counted

    def advance(self) -> None:
        """Finds out what every active lane has been given; to be called before any is given more."""
        if self.active:
            self._begins, self._charged = self._begins + self._charged / self.active, 0.0
        heap = self._heap
        while heap:
            served, _, account = heap[0]
            if account.queues and account.served == served:
                self._reached = max(self._reached, served)
                self._begins = max(self._begins, self._reached)
                return
            heapq.heappop(heap)
            account.listed = False
            if account.queues:
                self._list(account)

    def given(self, lane: Lane) -> float:
        """Returns the seconds that a lane has been given more than every active one."""
        return self._accounts[lane].served - self._reached

    def of(self, lane: Lane) -> float:
        """Returns the number of the lane's round: 0 for the one that is under way."""
        return self.given(lane) // self._quantum

    def _list(self, account: _Account) -> None:
        account.listed = True
        self._count += 1
        heapq.heappush(self._heap, (account.served, self._count, account))

    def _forget(self) -> None:
        """Drops the accounts of lanes that are gone, but for some that were given most."""
        # those that were given no more than an equal part would begin anew anyway
        gone = [(lane, one) for lane, one in self._accounts.items() if not one.queues and one.served > self._begins]
        kept = heapq.nlargest(_KEPT_ACCOUNTS // 2, gone, key=lambda item: item[1].served)
        self._accounts = {lane: one for lane, one in self._accounts.items() if one.queues}
        self._accounts.update(kept)
        self._heap = []
        for account in self._accounts.values():
            account.listed = False
            if account.queues:
                self._list(account)
