"""A client's connection as its calls use it: made when it is first used, with what is safe to repeat repeated."""

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from seqloom import forks
from seqloom.config import Config
from seqloom.errors import Cancelled, InvalidArgument, SeqloomError, arrived, from_transport
from seqloom.link import Link
from seqloom.retries import Backoff, may_repeat, remaining
from seqloom.run_calls import Delivery

T = TypeVar("T")


class Connection:
    """One client's connection, for the calls of one event loop. Raises InvalidArgument in a fork that can have none."""

    def __init__(self, config: Config) -> None:
        forks.check()
        self.config = config
        self._link: Link | None = None
        self._closed = False
        self._deliveries: weakref.WeakSet[Delivery] = weakref.WeakSet()

    def linked(self) -> Link:
        """Raises Cancelled where it is closed, InvalidArgument on another event loop and in a fork."""
        forks.check()
        if self._closed:
            raise _closed()
        if self._link is None:
            self._link = Link(self.config)
        elif self._link.loop is not asyncio.get_running_loop():
            raise InvalidArgument("the client belongs to another event loop: make one for each, or use seqloom.Client")
        if self._deliveries:  # to walk through a set of weak references costs something even if it is empty
            for delivery in self._deliveries:
                delivery.look()  # before a call makes a new connection unnoticed
        return self._link

    def options(self, deadline: float) -> dict[str, Any]:
        """What goes with a call that must be over at a deadline."""
        return {"timeout": remaining(deadline), "metadata": self.config.metadata()}

    def delivery(self, run: str, replay_bytes: int) -> Delivery:
        """A client of a run, of its own; it ends with the connection."""
        delivery = Delivery(run, self.linked(), {"metadata": self.config.metadata()}, replay_bytes, self.config.timeout)
        self._deliveries.add(delivery)
        return delivery

    async def models(self, method: str, request: Any, timeout: float | None, *, pure: bool = True) -> Any:
        """Calls a method of the model service."""
        return await self._unary(lambda: getattr(self.linked().models, method), request, timeout, pure)

    async def training(self, method: str, request: Any, timeout: float | None, *, pure: bool = True) -> Any:
        """Calls a method of the training service."""
        return await self._unary(lambda: getattr(self.linked().training, method), request, timeout, pure)

    async def repeated(self, attempt: Callable[[], Awaitable[T]], deadline: float, *, pure: bool) -> T:
        """Runs until it succeeds, or fails in a way that a repeat could not mend or must not risk."""
        backoff = Backoff(self.config.retries, deadline)
        while True:
            try:
                return await attempt()
            except SeqloomError as failed:
                error = failed
            except (Exception, asyncio.CancelledError) as failed:
                found = from_transport(failed, deadline)
                if found is None:
                    raise
                error = _closed() if self._closed else found
            if not may_repeat(error, pure=pure):
                raise error from None
            await asyncio.sleep(backoff.delay(error))

    async def close(self) -> None:
        """Ends it; whatever is open fails with Cancelled."""
        self._closed = True
        if forks.outlived():
            return
        for delivery in list(self._deliveries):
            delivery.abort(_closed())
        if self._link is not None:
            await self._link.close()

    async def _unary(self, method: Callable[[], Any], request: Any, timeout: float | None, pure: bool) -> Any:
        deadline = self.config.deadline(timeout)

        async def attempt() -> Any:
            return arrived(await method()(request, **self.options(deadline)))

        return await self.repeated(attempt, deadline, pure=pure)


def _closed() -> Cancelled:
    return Cancelled("the client is closed", reason="CLIENT_CLOSED")
