"""The event loop on a thread of its own, through which callers that block use what is asynchronous.

All blocking clients of a process share one loop, which is never closed: grpc.aio has one queue of events for all loops,
and events of a loop that is closed would fall on another's.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import os
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from seqloom.errors import Cancelled, InvalidArgument, SeqloomError

T = TypeVar("T")

_END = object()
_starting = threading.Lock()


class _Escaped(Exception):
    """Carries what must not be raised on the loop to the caller's thread."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(repr(error))
        self.error = error


class Portal:
    """Runs one client's coroutines for threads that wait for them; any number of threads at once."""

    def __init__(self) -> None:
        with _starting:
            self._loop, self._thread, self._process = _shared_loop()
        self._lock = threading.RLock()  # reentrant, as a generator may be collected, and so closed, anywhere
        self._feeds: weakref.WeakSet[AsyncGenerator[Any, None]] = weakref.WeakSet()
        self._running: set[concurrent.futures.Future[Any]] = set()
        self._stopped = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Returns what the coroutine returns, or raises what it raises; an interrupt cancels it."""
        with self._lock:
            refusal = self._refusal()
            if refusal is not None:
                coroutine.close()
                raise refusal
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
            self._running.add(future)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise Cancelled("the client is closed", reason="CLIENT_CLOSED") from None
        except BaseException:
            future.cancel()
            raise
        finally:
            self._running.discard(future)

    def _refusal(self) -> SeqloomError | None:
        if self._stopped:
            return Cancelled("the client is closed", reason="CLIENT_CLOSED")
        if os.getpid() != self._process:
            return InvalidArgument("gRPC does not outlive a fork: start processes by spawn, or before the first client")
        if threading.current_thread() is self._thread:
            return InvalidArgument("a blocking call from the client's own thread would wait for itself")
        return None

    def end(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs what ends something; where that cannot be run any more, it has ended already."""
        with contextlib.suppress(Cancelled, InvalidArgument):
            self.run(coroutine)

    def stop(self) -> None:
        """Takes no more; what still runs is cancelled."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for future in running:
            future.cancel()
        for feed in list(self._feeds):
            asyncio.run_coroutine_threadsafe(_close(feed), self._loop)

    def iterate(self, asynchronous: AsyncIterator[T]) -> Iterator[T]:
        """Yields what an asynchronous generator yields."""
        try:
            while (item := self.run(_next(asynchronous))) is not _END:
                yield item
        except _Escaped as escaped:
            raise escaped.error from None
        finally:
            self.end(_close(asynchronous))

    def feed(self, items: Iterable[T]) -> AsyncIterator[T]:
        """Yields what an iterable yields; it is read on a thread of its own, as its next item may take long to come.

        One item is read ahead. A thread that waits in an iterable whose reader has gone ends with its next item.
        """
        feed = self._feed(items)
        self._feeds.add(feed)
        return feed

    async def _feed(self, items: Iterable[T]) -> AsyncGenerator[T, None]:
        queue: asyncio.Queue[tuple[bool, Any]] = asyncio.Queue(1)
        gone = threading.Event()

        def put(more: bool, item: Any) -> None:
            # either is raised where the reader or the loop has gone
            with contextlib.suppress(concurrent.futures.CancelledError, RuntimeError):
                asyncio.run_coroutine_threadsafe(queue.put((more, item)), self._loop).result()

        def read() -> None:
            try:
                for item in items:
                    if gone.is_set():
                        return
                    put(True, item)
                    if gone.is_set():
                        return
                put(False, None)
            except Exception as error:
                put(False, error)
            except BaseException as error:  # on the loop it would end the loop
                put(False, _Escaped(error))

        threading.Thread(target=read, name="seqloom-chunks", daemon=True).start()
        try:
            while True:
                more, item = await queue.get()
                if not more:
                    if item is not None:
                        raise item
                    return
                yield item
        finally:
            gone.set()
            while not queue.empty():
                queue.get_nowait()


async def _next(asynchronous: AsyncIterator[Any]) -> Any:
    return await anext(asynchronous, _END)  # a coroutine cannot raise StopAsyncIteration


async def _close(asynchronous: AsyncIterator[Any]) -> None:
    with contextlib.suppress(RuntimeError):  # it runs: then who runs it ends it
        await asynchronous.aclose()  # type: ignore[attr-defined]


@functools.cache
def _shared_loop() -> tuple[asyncio.AbstractEventLoop, threading.Thread, int]:
    """The loop, its thread and its process."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="seqloom-client", daemon=True)
    thread.start()
    return loop, thread, os.getpid()
