"""The calls that are open, by token: they end when their token is removed, or loses the scope they need."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from seqloom_server.errors import ServerError
from seqloom_server.rpc.security.tokens import Token

T = TypeVar("T")


class OpenCall:
    """A call with its token as it was when the call began. error: why the server has ended it, None if it has not."""

    __slots__ = ("error", "scope", "task", "token")

    def __init__(self, task: "asyncio.Task[object]", token: Token, scope: str) -> None:
        self.task = task
        self.token = token
        self.scope = scope
        self.error: ServerError | None = None


class OpenCalls:
    """All of them."""

    def __init__(self) -> None:
        self._calls: set[OpenCall] = set()

    def __len__(self) -> int:
        return len(self._calls)

    async def run(self, token: Token, scope: str, work: Awaitable[T]) -> T:
        """Awaits the work of a call in the current task, which is the call's. Raises the error that ends it."""
        task = asyncio.current_task()
        assert task is not None
        call = OpenCall(task, token, scope)
        self._calls.add(call)
        try:
            return await work
        except asyncio.CancelledError:
            if call.error is None:  # the caller has cancelled it
                raise
            task.uncancel()
            raise call.error from None
        finally:
            self._calls.remove(call)

    def end(self, why: Callable[[OpenCall], ServerError | None]) -> None:
        """Ends each call of which why() returns an error: its task is cancelled, and run() raises it."""
        for call in list(self._calls):
            error = why(call)
            if error is not None and call.error is None:
                call.error = error
                call.task.cancel()
