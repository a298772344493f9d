"""A client's connection as its calls use it: made when it is first used, with what is safe to repeat repeated."""

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from grpc.aio import UnaryUnaryMultiCallable

from seqloom import _forks
from seqloom._config import Config
from seqloom._connection.channel import Channel
from seqloom._connection.service_stubs import CallOptions, ModelStub, Request, Response, TrainingStub, UnaryMethod
from seqloom._retries import Backoff, may_repeat, remaining
from seqloom.errors import Cancelled, InvalidArgument, SeqloomError, arrived, from_transport

T = TypeVar("T")


class Follower(Protocol):
    """What lives on a connection for longer than a call, and so follows what becomes of it."""

    def look(self) -> None:
        """Sees whether the connection was lost."""

    def abort(self, error: SeqloomError) -> None:
        """Ends with the connection."""


class Connection:
    """One client's connection, for the calls of one event loop. Raises InvalidArgument in a fork that can have none."""

    def __init__(self, config: Config) -> None:
        _forks.check()
        self.config = config
        self._channel: Channel | None = None
        self._closed = False
        self._followers: weakref.WeakSet[Follower] = weakref.WeakSet()

    def channel(self) -> Channel:
        """Raises Cancelled where it is closed, InvalidArgument on another event loop and in a fork."""
        _forks.check()
        if self._closed:
            raise _closed()
        if self._channel is None:
            self._channel = Channel(self.config)
        elif self._channel.loop is not asyncio.get_running_loop():
            raise InvalidArgument("the client belongs to another event loop: make one for each, or use seqloom.Client")
        if self._followers:  # to walk through a set of weak references costs something even if it is empty
            for follower in self._followers:
                follower.look()  # before a call makes a new connection unnoticed
        return self._channel

    def options(self, deadline: float) -> CallOptions:
        """What goes with a call that must be over at a deadline."""
        return {"timeout": remaining(deadline), "metadata": self.config.metadata()}

    def followed_by(self, follower: Follower) -> None:
        """Has it told of what becomes of the connection, for as long as anybody else refers to it."""
        self._followers.add(follower)

    async def models(
        self,
        method: UnaryMethod[ModelStub, Request, Response],
        request: Request,
        timeout: float | None,
        *,
        pure: bool = True,
    ) -> Response:
        """Calls a method of the model service."""
        return await self._unary(lambda: method(self.channel().models), request, timeout, pure)

    async def training(
        self,
        method: UnaryMethod[TrainingStub, Request, Response],
        request: Request,
        timeout: float | None,
        *,
        pure: bool = True,
    ) -> Response:
        """Calls a method of the training service."""
        return await self._unary(lambda: method(self.channel().training), request, timeout, pure)

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
        if _forks.outlived():
            return
        for follower in list(self._followers):
            follower.abort(_closed())
        if self._channel is not None:
            await self._channel.close()

    async def _unary(
        self,
        method: Callable[[], UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        timeout: float | None,
        pure: bool,
    ) -> Response:
        deadline = self.config.deadline(timeout)

        async def attempt() -> Response:
            return arrived(await method()(request, **self.options(deadline)))

        return await self.repeated(attempt, deadline, pure=pure)


def _closed() -> Cancelled:
    return Cancelled("the client is closed", reason="CLIENT_CLOSED")
