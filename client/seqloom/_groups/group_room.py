"""What a stream group may send ahead: steps of its window, calls without answers, bytes of the client's budget."""

import collections
from collections.abc import Callable
from typing import Protocol

from seqloom._streaming.deadline_timer import Deadline
from seqloom._streaming.stream_budget import BudgetShare
from seqloom.errors import DeadlineExceeded

LEAST_CALLS = 64  # that every server lets wait, however small the window is


class WaitingGroup(Protocol):
    """The group that waits. window: as the server has said."""

    window: int

    def check_open(self) -> None:
        """Raises the group's failure, or InvalidArgument once it is finished."""

    def can_keep(self, size: int) -> bool:
        """Returns whether so many bytes may be kept for a resumption."""

    async def wait(self, condition: Callable[[], bool], deadline: Deadline) -> None: ...

    def notify(self) -> None: ...


class GroupRoom:
    """The room of one group. share: of the budget.

    sent: steps of calls that have not failed. received: those whose outputs the caller has. calls: that are sent and
    not answered.
    """

    def __init__(self, group: WaitingGroup, share: BudgetShare) -> None:
        self.sent = 0
        self.received = 0
        self.calls = 0
        self._group = group
        self._share = share
        self._turns: collections.deque[object] = collections.deque()  # of who waits to send frames, in order

    async def take(self, steps: int, size: int, deadline: float) -> None:
        """Waits for room for a call with steps, and takes it, `size` bytes of the budget included.

        Raises DeadlineExceeded, and what check_open() does.
        """
        self._group.check_open()
        room = not self._turns and self._has(steps) and self._group.can_keep(size)
        if not room or not self._share.take(size):
            await self._wait(steps, size, deadline)
        self.sent += steps

    async def wait_for_call(self, deadline: float) -> None:
        """Waits until a call without frames may be sent. Raises as take()."""
        self._group.check_open()
        if not self._has(0):
            await self._until(lambda: self._has(0), deadline)
            self._group.check_open()

    def _has(self, steps: int) -> bool:
        """Returns whether there is room for a call with steps: for any number if none is sent and not received."""
        ahead, window = self.sent - self.received, self._group.window
        return self.calls < max(window, LEAST_CALLS) and (not steps or not ahead or ahead + steps <= window)

    async def _wait(self, steps: int, size: int, deadline: float) -> None:
        turn = object()
        self._turns.append(turn)
        try:
            await self._until(
                lambda: self._turns[0] is turn and self._has(steps) and self._group.can_keep(size), deadline
            )
            self._group.check_open()  # it may have failed at the moment when there was room
            if not self._share.take(size):
                with self._share.waiting_for(size, self._group.notify):
                    await self._until(lambda: self._share.has_room(size), deadline)
                    self._group.check_open()
                    self._share.take(size)
        finally:
            self._turns.remove(turn)
            self._group.notify()

    async def _until(self, condition: Callable[[], bool], deadline: float) -> None:
        try:
            await self._group.wait(condition, deadline)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self.sent - self.received} steps are sent and not received, of a window of {self._group.window}, "
                f"and the client's streams hold {self._share.describe()}: receive outputs before sending more",
                reason="WINDOW_FULL",
            ) from None
