"""Runs coroutines on an event loop in a thread, for callers that block.

All blocking clients of a process share one loop, which is never closed: grpc.aio has one event queue for all loops, and
would deliver the events of a closed loop to another loop.
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


class _CarriedError(Exception):
    """Carries an error to the caller's thread that must not be raised on the loop, such as KeyboardInterrupt."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(repr(error))
        self.error = error


class LoopThread:
    """Runs the coroutines of one client, for any number of threads that wait for them."""

    def __init__(self) -> None:
        with _starting:
            self._loop, self._thread = _shared_loop()
        self._lock = threading.RLock()  # reentrant, as the garbage collector may close a generator at any point
        self._readers: weakref.WeakSet[_Endable] = weakref.WeakSet()
        self._running: set[_Cancellable] = set()
        self._stopped = False

    def run(self, coroutine: Coroutine[object, None, T]) -> T:
        """Runs a coroutine and returns its result or raises its error. An interrupt cancels the coroutine."""
        try:
            _forks.check_not_forked()  # first: in a fork the lock may be held by a thread that does not exist
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
        """Runs `start` on the loop, and returns its future as one that a thread can wait for."""

        async def started() -> concurrent.futures.Future[T]:
            outer: concurrent.futures.Future[T] = concurrent.futures.Future()
            outer.set_running_or_notify_cancel()  # a call that was sent cannot be cancelled
            start().add_done_callback(lambda inner: _copy(inner, outer))
            return outer

        return self.run(started())

    def _check(self) -> None:
        if self._stopped:
            raise Cancelled("the client is closed", reason="CLIENT_CLOSED")
        if threading.current_thread() is self._thread:
            raise InvalidArgument(
                "a blocking call in the client's event loop thread would block this thread: call it in another thread"
            )

    def end(self, coroutine: Coroutine[object, None, None]) -> None:
        """Runs a coroutine that closes something, also after stop(), and raises its error.

        In a fork and on the loop's own thread it does nothing, as it cannot wait there.
        """
        if _forks.is_forked() or threading.current_thread() is self._thread:
            coroutine.close()
            return
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def stop(self) -> None:
        """Refuses further calls and cancels those that run."""
        if _forks.is_forked():
            return
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for future in running:
            future.cancel()
        for reader in list(self._readers):
            reader.end()

    def iterate(self, asynchronous: AsyncIterator[T]) -> Iterator[T]:
        """Yields the items of an asynchronous generator."""
        try:
            while (item := self.run(_next(asynchronous))) is not _End.END:
                yield item
        except _CarriedError as carried:
            raise carried.error from None
        finally:
            self.end(_close(asynchronous))

    def feed(self, items: Iterable[T]) -> AsyncIterator[T]:
        """Yields the items of an iterable, which is read in its own thread, as its next item may take long."""
        _forks.check_not_forked()
        reader = _IterableReader(items, self._loop)
        self._readers.add(reader)
        threading.Thread(target=reader.read, name="seqloom-chunks", daemon=True).start()
        return reader.items()


class _IterableReader(Generic[T]):
    """Reads an iterable in a thread, one item ahead of the consumer on the loop.

    If the consumer has ended, the thread ends when the iterable yields its next item.
    """

    def __init__(self, items: Iterable[T], loop: asyncio.AbstractEventLoop) -> None:
        self._items = items
        self._loop = loop
        self._read: asyncio.Queue[tuple[T] | BaseException | _End] = asyncio.Queue()
        self._room = threading.Semaphore(1)
        self._closed = False

    def read(self) -> None:
        """Reads the iterable; runs in the thread."""
        try:
            for item in self._items:
                self._room.acquire()
                if self._closed:
                    return
                self._put((item,))
            self._put(_End.END)
        except Exception as error:
            self._put(error)
        except BaseException as error:  # raised on the loop it would end the loop
            self._put(_CarriedError(error))

    def end(self) -> None:
        """Ends the thread and the consumer."""
        self._closed = True
        self._room.release()
        self._put(_End.END)

    async def items(self) -> AsyncGenerator[T, None]:
        """Yields the items; runs on the loop."""
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
    with contextlib.suppress(RuntimeError):  # it is running, and its consumer will close it
        await asynchronous.aclose()  # type: ignore[attr-defined]


def _copy(inner: asyncio.Future[T], outer: concurrent.futures.Future[T]) -> None:
    error = Cancelled("the client is closed", reason="CLIENT_CLOSED") if inner.cancelled() else inner.exception()
    if error is None:
        outer.set_result(inner.result())
    else:
        outer.set_exception(error)


@functools.cache
def _shared_loop() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    """Starts the loop in a thread, once in a process; returns both."""
    _forks.mark_grpc_used()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="seqloom-client", daemon=True)
    thread.start()
    return loop, thread
