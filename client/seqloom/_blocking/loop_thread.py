"""The event loop on a thread of its own, through which callers that block use what is asynchronous.

All blocking clients of a process share one loop, which is never closed: grpc.aio has one queue of events for all loops,
and events of a loop that is closed would fall on another's.
"""

import asyncio
import concurrent.futures
import contextlib
import enum
import functools
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from seqloom import _forks
from seqloom.errors import Cancelled, InvalidArgument, SeqloomError

T = TypeVar("T")

_starting = threading.Lock()


class _End(enum.Enum):
    """Says that an iterator has no more items."""

    END = 0


class _Cancellable(Protocol):
    """A future, of any type of result."""

    def cancel(self) -> bool: ...


class _Endable(Protocol):
    """A reader, of any type of items."""

    def end(self) -> None: ...


class _Escaped(Exception):
    """Carries what must not be raised on the loop to the caller's thread."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(repr(error))
        self.error = error


class LoopThread:
    """Runs one client's coroutines for threads that wait for them; any number of threads at once."""

    def __init__(self) -> None:
        with _starting:
            self._loop, self._thread = _shared_loop()
        self._lock = threading.RLock()  # reentrant, as a generator may be collected, and so closed, anywhere
        self._readers: weakref.WeakSet[_Endable] = weakref.WeakSet()
        self._running: set[_Cancellable] = set()
        self._stopped = False

    def run(self, coroutine: Coroutine[object, None, T]) -> T:
        """Returns what the coroutine returns, or raises what it raises; an interrupt cancels it."""
        try:
            _forks.check()  # first: a thread that is not in this process may have held the lock
            with self._lock:
                self._check()
                future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
                self._running.add(future)
        except SeqloomError:
            coroutine.close()
            raise
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise Cancelled("the client is closed", reason="CLIENT_CLOSED") from None
        except BaseException:
            future.cancel()
            raise
        finally:
            self._running.discard(future)

    def begin(self, start: Callable[[], asyncio.Future[T]]) -> concurrent.futures.Future[T]:
        """Returns what `start` returns on the loop, as a future that a thread can wait for; raises what it raises."""

        async def started() -> concurrent.futures.Future[T]:
            outer: concurrent.futures.Future[T] = concurrent.futures.Future()
            outer.set_running_or_notify_cancel()  # what was sent cannot be called back
            start().add_done_callback(lambda inner: _copy(inner, outer))
            return outer

        return self.run(started())

    def _check(self) -> None:
        if self._stopped:
            raise Cancelled("the client is closed", reason="CLIENT_CLOSED")
        if threading.current_thread() is self._thread:
            raise InvalidArgument("a blocking call from the client's own thread would wait for itself")

    def end(self, coroutine: Coroutine[object, None, None]) -> None:
        """Runs what ends something, also after stop(), and raises what it raises.

        Where nothing can be waited for, in a fork and on the loop's own thread, there is nothing to end.
        """
        if _forks.outlived() or threading.current_thread() is self._thread:
            coroutine.close()
            return
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def stop(self) -> None:
        """Takes no more; what still runs is cancelled."""
        if _forks.outlived():
            return
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for future in running:
            future.cancel()
        for reader in list(self._readers):
            reader.end()

    def iterate(self, asynchronous: AsyncIterator[T]) -> Iterator[T]:
        """Yields what an asynchronous generator yields."""
        try:
            while (item := self.run(_next(asynchronous))) is not _End.END:
                yield item
        except _Escaped as escaped:
            raise escaped.error from None
        finally:
            self.end(_close(asynchronous))

    def feed(self, items: Iterable[T]) -> AsyncIterator[T]:
        """Yields what an iterable yields; it is read on a thread of its own, as its next item may take long to come."""
        _forks.check()
        reader = _Reader(items, self._loop)
        self._readers.add(reader)
        threading.Thread(target=reader.read, name="seqloom-chunks", daemon=True).start()
        return reader.items()


class _Reader(Generic[T]):
    """Reads an iterable, one item ahead of who takes them on the loop.

    A thread that waits in an iterable whose taker has gone ends with its next item.
    """

    def __init__(self, items: Iterable[T], loop: asyncio.AbstractEventLoop) -> None:
        self._items = items
        self._loop = loop
        self._read: asyncio.Queue[tuple[T] | BaseException | _End] = asyncio.Queue()
        self._room = threading.Semaphore(1)
        self._gone = False

    def read(self) -> None:
        """The thread's work."""
        try:
            for item in self._items:
                self._room.acquire()
                if self._gone:
                    return
                self._put((item,))
            self._put(_End.END)
        except Exception as error:
            self._put(error)
        except BaseException as error:  # on the loop it would end the loop
            self._put(_Escaped(error))

    def end(self) -> None:
        """Ends the thread, and whoever waits for its items."""
        self._gone = True
        self._room.release()
        self._put(_End.END)

    async def items(self) -> AsyncGenerator[T, None]:
        """Yields the items, on the loop."""
        try:
            while True:
                read = await self._read.get()
                if isinstance(read, BaseException):
                    raise read
                if read is _End.END:
                    return
                self._room.release()
                yield read[0]
        finally:
            self.end()

    def _put(self, read: tuple[T] | BaseException | _End) -> None:
        self._loop.call_soon_threadsafe(self._read.put_nowait, read)


async def _next(asynchronous: AsyncIterator[T]) -> T | _End:
    return await anext(asynchronous, _End.END)  # a coroutine cannot raise StopAsyncIteration


async def _close(asynchronous: AsyncIterator[object]) -> None:
    with contextlib.suppress(RuntimeError):  # it runs: then who runs it ends it
        await asynchronous.aclose()  # type: ignore[attr-defined]


def _copy(inner: asyncio.Future[T], outer: concurrent.futures.Future[T]) -> None:
    error = Cancelled("the client is closed", reason="CLIENT_CLOSED") if inner.cancelled() else inner.exception()
    if error is None:
        outer.set_result(inner.result())
    else:
        outer.set_exception(error)


@functools.cache
def _shared_loop() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    """The loop and its thread."""
    _forks.begin()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="seqloom-client", daemon=True)
    thread.start()
    return loop, thread
