"""A live stream: frames in, outputs out, the hidden state kept on the server in between."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Self

import numpy.typing as npt

from seqloom import _forks
from seqloom._messages import arguments
from seqloom._retries import checked_seconds
from seqloom._streaming.deadline_timer import Deadline
from seqloom._streaming.session import Session
from seqloom.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    Overloaded,
    SeqloomError,
    StreamLost,
    Unavailable,
)
from seqloom.types import Chunk, ModelSpec, Snapshot, State


class AsyncStream:
    """One live stream, made by `client.stream`; open inside its `with` block. Many streams of a client share one call.

    A bounded number of steps may be sent and not yet received, the window; `send` waits when it is full. All streams
    of a client share 64 MiB: as what they have sent and not received comes near that, each may send less ahead, but
    always one chunk. Where a timeout is not named, the stream's is taken, in seconds.
    """

    def __init__(self, opener: Callable[[], Awaitable[tuple[Session, ModelSpec]]], timeout: float) -> None:
        self._opener = opener
        self._timeout = timeout
        self._session: Session | None = None
        self._spec: ModelSpec | None = None

    async def __aenter__(self) -> Self:
        """Opens the stream on the server. Raises NotFound, VersionMismatch, Overloaded, Unavailable and others."""
        if self._session is not None:
            raise InvalidArgument("the stream was opened before: make a new one")
        self._session, self._spec = await self._opener()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Drops the stream, unless it has finished."""
        if self._session is not None and not _forks.outlived():
            self._session.cancel(Cancelled("the stream is closed", reason="STREAM_CLOSED"))

    async def send(self, frames: npt.ArrayLike, timeout: float | None = None) -> None:
        """Sends a chunk of frames, [k, D], k may be 0; waits while the window is full, or what all streams share.

        Raises DeadlineExceeded where it stays full: receive outputs first.
        """
        session, spec = self._opened()
        with _stream_errors:
            await session.send(arguments.frames(frames, spec, "frames"), self._deadline(timeout))

    async def receive(self, timeout: float | None = None) -> Chunk:
        """Returns the outputs of the next chunk that was sent, waiting for them. Raises DeadlineExceeded.

        Raises InvalidArgument where the stream is finished and nothing more is due.
        """
        session, _ = self._opened()
        with _stream_errors:
            if not session.ready:
                await _until(session, lambda: session.ready or session.exhausted, self._deadline(timeout))
            if session.ready:
                return session.receive()
        raise InvalidArgument("the stream is finished: no more outputs are due", reason="NOTHING_DUE")

    async def reset(self) -> None:
        """Zeroes the hidden state before the frames that are sent next; steps count on."""
        session, _ = self._opened()
        with _stream_errors:
            session.reset()

    async def finish(self, timeout: float | None = None) -> State:
        """Says that no more frames come; returns the final state, State of [L, 1, H].

        Outputs that were still due stay readable: by iteration, or receive().
        """
        session, _ = self._opened()
        with _stream_errors:
            deadline = self._deadline(timeout)
            await session.end(deadline)
            await _until(session, lambda: session.final_state is not None, deadline)
        assert session.final_state is not None
        return session.final_state

    async def run(self, chunks: Iterable[npt.ArrayLike] | AsyncIterable[npt.ArrayLike]) -> AsyncIterator[Chunk]:
        """Sends chunks of frames, each [k, D], as they come, and yields the outputs of each in order, as they come.

        Pipelined: the next chunk is sent before the outputs of the last are there, as far as the window goes.
        """
        session, _ = self._opened()
        feeding = asyncio.create_task(self._feed(chunks))

        def fed(task: asyncio.Task[None]) -> None:
            session.notify()
            if not task.cancelled():
                task.exception()  # looked at, should nobody come back for it

        feeding.add_done_callback(fed)
        try:
            while True:
                with _stream_errors:
                    if not session.ready:
                        await _until(
                            session,
                            lambda: session.ready or (feeding.done() and not session.due),
                            _patience(session, self._timeout),
                        )
                    if not session.ready:
                        break
                    chunk = session.receive()
                yield chunk
            await feeding
        finally:
            feeding.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await feeding

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """Yields outputs in order until the stream is finished and nothing more is due."""
        session, _ = self._opened()
        while True:
            with _stream_errors:
                await session.wait(lambda: session.ready or session.exhausted, math.inf)
                if not session.ready:
                    return
                chunk = session.receive()
            yield chunk

    @property
    def weights_version(self) -> int:
        """The version of the weights that the stream was opened with, and keeps."""
        return self._opened()[0].weights_version

    @property
    def window(self) -> int:
        """The most steps that may be sent and not yet received, while the client's streams leave little unread."""
        return self._opened()[0].window

    @property
    def snapshot(self) -> Snapshot | None:
        """The last state that the server sent on its way, where the stream was opened with a snapshot_interval."""
        return self._opened()[0].snapshot

    async def _feed(self, chunks: Iterable[npt.ArrayLike] | AsyncIterable[npt.ArrayLike]) -> None:
        if isinstance(chunks, AsyncIterable):
            async for chunk in chunks:
                await self._send_in_time(chunk)
        else:
            for chunk in chunks:
                await self._send_in_time(chunk)
                await asyncio.sleep(0)  # so that a long iterable leaves the loop to others

    async def _send_in_time(self, frames: npt.ArrayLike) -> None:
        # the consumer may take as long as it likes, and a full window is then no error
        session, spec = self._opened()
        with _stream_errors:
            await session.send(arguments.frames(frames, spec, "chunks"), math.inf)

    def _opened(self) -> tuple[Session, ModelSpec]:
        _forks.check()
        if self._session is None or self._spec is None:
            raise InvalidArgument("the stream is not open: use it inside `with client.stream(...) as stream:`")
        return self._session, self._spec

    def _deadline(self, timeout: float | None) -> float:
        return time.monotonic() + (self._timeout if timeout is None else checked_seconds(timeout, "timeout"))


def _patience(session: Session, seconds: float) -> Deadline:
    """A deadline that is so far from now, or from when something was sent that is due, if that is later."""
    begun = time.monotonic()

    def deadline() -> float:
        sent = session.due_since
        return seconds + (time.monotonic() if sent is None else max(begun, sent))

    return deadline


async def _until(session: Session, condition: Callable[[], bool], deadline: Deadline) -> None:
    try:
        await session.wait(condition, deadline)
    except TimeoutError:
        waited = "no answer came in time" if session.due else "nothing was sent that an answer is due to"
        raise DeadlineExceeded(waited, reason="TIMEOUT") from None


class _StreamErrors:
    """An open stream that loses its connection is StreamLost: what a repeat could mend elsewhere, it cannot here.

    So is one that the server drops since it takes no more now.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Unavailable | Overloaded):
            raise StreamLost(error.message, reason=error.reason, request_id=error.request_id) from None
        if isinstance(error, SeqloomError):
            raise error.with_traceback(None) from None


_stream_errors = _StreamErrors()
