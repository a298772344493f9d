"""A client's connection, which is opened by the first call and repeats calls that are safe to repeat."""

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from grpc.aio import UnaryUnaryMultiCallable

from seqloom import _forks
from seqloom._config import Config
from seqloom._connection.channel import Channel
from seqloom._connection.service_stubs import CallOptions, ModelStub, Request, Response, TrainingStub, UnaryMethod
from seqloom._retries import Backoff, backoff_of, may_repeat, remaining
from seqloom._retry_budget import RetryBudget
from seqloom.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    SeqloomError,
    Unavailable,
    checked_reply,
    from_transport,
)

T = TypeVar("T")


class ConnectionListener(Protocol):
    """An object that uses a connection for longer than one call."""

    def check_connection(self) -> None:
        """Checks whether the connection is lost."""

    def connection_lost(self) -> None:
        """Is called after the connection was lost, also if it is restored already."""

    def abort(self, error: SeqloomError) -> None:
        """Ends the object, as the connection is closed."""


class Connection:
    """A client's connection, for the calls of one event loop. Raises InvalidArgument in a fork that cannot have one.

    retry_budget: of all its calls.
    """

    def __init__(self, config: Config) -> None:
        _forks.check_not_forked()
        self.config = config
        self.retry_budget = RetryBudget()
        self._channel: Channel | None = None
        self._closed = False
        self._reached = False  # whether a call was ever answered
        self._listeners: weakref.WeakSet[ConnectionListener] = weakref.WeakSet()

    def channel(self) -> Channel:
        """Returns the channel. Raises Cancelled after close(); InvalidArgument on another event loop and in a fork."""
        _forks.check_not_forked()
        if self._closed:
            raise _closed()
        if self._channel is None:
            self._channel = Channel(self.config)
        elif self._channel.loop is not asyncio.get_running_loop():
            raise InvalidArgument(
                "the client belongs to another event loop: create one for each loop, or use seqloom.Client"
            )
        if self._listeners:  # iterating over a set of weak references is slow even if it is empty
            for listener in self._listeners:
                listener.check_connection()  # before a call makes a new connection
        return self._channel

    def options(self, deadline: float) -> CallOptions:
        """Returns the options of a call with a deadline."""
        return {"timeout": remaining(deadline), "metadata": self.config.metadata()}

    def add_listener(self, listener: ConnectionListener) -> None:
        """Adds a listener, which is removed when it is garbage-collected."""
        self._listeners.add(listener)
        self.channel().watch(weakref.WeakMethod(self._lost))

    def _lost(self) -> None:
        for listener in list(self._listeners):
            listener.connection_lost()

    async def models(
        self,
        method: UnaryMethod[ModelStub, Request, Response],
        request: Request,
        timeout: float | None,
        *,
        read_only: bool = True,
    ) -> Response:
        """Calls a method of the model service."""
        return await self._unary(lambda: method(self.channel().models), request, timeout, read_only)

    async def training(
        self,
        method: UnaryMethod[TrainingStub, Request, Response],
        request: Request,
        timeout: float | None,
        *,
        read_only: bool = True,
    ) -> Response:
        """Calls a method of the training service."""
        return await self._unary(lambda: method(self.channel().training), request, timeout, read_only)

    async def repeated(self, attempt: Callable[[], Awaitable[T]], deadline: float, *, read_only: bool) -> T:
        """Repeats `attempt` until it succeeds, or fails with an error after which it cannot be repeated."""
        self.retry_budget.add_call()
        backoff: Backoff | None = None  # made once something has failed, which is seldom
        while True:
            try:
                result = await attempt()
                self._reached = True
                return result
            except SeqloomError as failed:
                error = failed
            except (Exception, asyncio.CancelledError) as failed:
                found = from_transport(failed, deadline)
                if found is None:
                    raise
                error = _closed() if self._closed else found
            if error.request_id or not isinstance(error, Unavailable | DeadlineExceeded | Cancelled):
                self._reached = True  # what else is told is told by a server
            if not may_repeat(error, read_only=read_only):
                raise error from None
            if backoff is None:
                backoff = backoff_of(self.config.retries, deadline, self.retry_budget, reached=self._reached)
            await asyncio.sleep(backoff.delay(error))

    async def close(self) -> None:
        """Closes the connection. Open calls, streams and runs fail with Cancelled."""
        self._closed = True
        if _forks.is_forked():
            return
        for listener in list(self._listeners):
            listener.abort(_closed())
        if self._channel is not None:
            await self._channel.close()

    async def _unary(
        self,
        method: Callable[[], UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        timeout: float | None,
        read_only: bool,
    ) -> Response:
        deadline = self.config.deadline(timeout)

        async def attempt() -> Response:
            return checked_reply(await method()(request, **self.options(deadline)))

        return await self.repeated(attempt, deadline, read_only=read_only)


def _closed() -> Cancelled:
    return Cancelled("the client is closed", reason="CLIENT_CLOSED")
