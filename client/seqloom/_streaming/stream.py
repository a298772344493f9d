"""A live stream, which sends frames and receives their outputs; its hidden state stays on the server."""

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
from seqloom._streaming.live_session import LiveSession
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
    """A live stream, returned by `client.stream` and open inside its `with` block.

    The window limits how many steps may be sent and not yet received; `send` waits while it is full. All streams of a
    client share 64 MiB for frames and outputs that are sent and not received: a stream may send less ahead as less of
    that is free, but always one chunk. timeout: seconds, by default the stream's.

    If the connection or the server is lost, the stream is resumed (unless resume=False): calls wait, and go on as if
    nothing had happened. They raise StreamLost once it cannot be resumed.
    """

    def __init__(self, open_session: Callable[[], Awaitable[tuple[LiveSession, ModelSpec]]], timeout: float) -> None:
        self._open_session = open_session
        self._timeout = timeout
        self._session: LiveSession | None = None
        self._spec: ModelSpec | None = None

    async def __aenter__(self) -> Self:
        """Opens the stream on the server. Raises NotFound, VersionMismatch, Overloaded or Unavailable, among others."""
        if self._session is not None:
            raise InvalidArgument("the stream was opened before: create a new one")
        self._session, self._spec = await self._open_session()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the stream. Without `finish` its hidden state is lost."""
        if self._session is not None and not _forks.is_forked():
            self._session.cancel(Cancelled("the stream is closed", reason="STREAM_CLOSED"))

    async def send(self, frames: npt.ArrayLike, timeout: float | None = None) -> None:
        """Sends a chunk of frames, [k, D], where k may be 0. Waits while the window or the shared 64 MiB are full.

        Raises DeadlineExceeded if they are still full at the timeout: receive outputs first.
        """
        session, spec = self._require_open()
        with stream_errors:
            await session.send(arguments.frames(frames, spec, "frames"), self._deadline(timeout))

    async def receive(self, timeout: float | None = None) -> Chunk:
        """Waits for the outputs of the next chunk that was sent, and returns them.

        Raises DeadlineExceeded; InvalidArgument if the stream is finished and all outputs were received.
        """
        session, _ = self._require_open()
        with stream_errors:
            if not session.ready:
                await _until(session, lambda: session.ready or session.exhausted, self._deadline(timeout))
            if session.ready:
                return session.receive()
        raise InvalidArgument("the stream is finished: all outputs were received", reason="NOTHING_DUE")

    async def reset(self) -> None:
        """Sets the hidden state to zero before the next frames. The count of steps goes on."""
        session, _ = self._require_open()
        with stream_errors:
            session.reset()

    async def finish(self, timeout: float | None = None) -> State:
        """Ends the sequence; waits for the final state and returns it, a State of [L, 1, H].

        Outputs that were not received yet can still be: by iteration, or by receive().
        """
        session, _ = self._require_open()
        with stream_errors:
            deadline = self._deadline(timeout)
            await session.end(deadline)
            await _until(session, lambda: session.final_state is not None, deadline)
        assert session.final_state is not None
        return session.final_state

    async def run(self, chunks: Iterable[npt.ArrayLike] | AsyncIterable[npt.ArrayLike]) -> AsyncIterator[Chunk]:
        """Sends chunks of frames, each [k, D], and yields the outputs of each chunk, in order, as soon as they arrive.

        The next chunks are sent while outputs are pending, up to the window.
        """
        session, _ = self._require_open()
        sending = asyncio.create_task(self._send_all(chunks))

        def finished_sending(task: asyncio.Task[None]) -> None:
            session.notify()
            if not task.cancelled():
                task.exception()  # retrieved, so that asyncio does not log it if nobody awaits the task

        sending.add_done_callback(finished_sending)
        try:
            while True:
                with stream_errors:
                    if not session.ready:
                        await _until(
                            session,
                            lambda: session.ready or (sending.done() and not session.has_pending),
                            _response_deadline(session, self._timeout),
                        )
                    if not session.ready:
                        break
                    chunk = session.receive()
                yield chunk
            await sending
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await sending

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """Yields the outputs of chunks, in order, until the stream is finished and all outputs were received."""
        session, _ = self._require_open()
        while True:
            with stream_errors:
                await session.wait(lambda: session.ready or session.exhausted, math.inf)
                if not session.ready:
                    return
                chunk = session.receive()
            yield chunk

    @property
    def weights_version(self) -> int:
        """The version of the weights, which stays the same for the whole stream."""
        return self._require_open()[0].weights_version

    @property
    def window(self) -> int:
        """The most steps that may be sent and not yet received, if enough of the shared 64 MiB is free."""
        return self._require_open()[0].window

    @property
    def snapshot(self) -> Snapshot | None:
        """The last snapshot that the server sent; None before the first, or without a snapshot_interval."""
        return self._require_open()[0].snapshot

    async def _send_all(self, chunks: Iterable[npt.ArrayLike] | AsyncIterable[npt.ArrayLike]) -> None:
        if isinstance(chunks, AsyncIterable):
            async for chunk in chunks:
                await self._send_in_time(chunk)
        else:
            for chunk in chunks:
                await self._send_in_time(chunk)
                await asyncio.sleep(0)  # so that a long iterable does not block the event loop

    async def _send_in_time(self, frames: npt.ArrayLike) -> None:
        # no deadline: the caller of run() may take outputs as slowly as it likes
        session, spec = self._require_open()
        with stream_errors:
            await session.send(arguments.frames(frames, spec, "chunks"), math.inf)

    def _require_open(self) -> tuple[LiveSession, ModelSpec]:
        _forks.check_not_forked()
        if self._session is None or self._spec is None:
            raise InvalidArgument("the stream is not open: use it inside `with client.stream(...) as stream:`")
        return self._session, self._spec

    def _deadline(self, timeout: float | None) -> float:
        return time.monotonic() + (self._timeout if timeout is None else checked_seconds(timeout, "timeout"))


def _response_deadline(session: LiveSession, seconds: float) -> Deadline:
    """Returns a deadline: `seconds` from now, or from when the first pending chunk was sent, if that is later."""
    begun = time.monotonic()

    def deadline() -> float:
        sent = session.pending_since
        return seconds + (time.monotonic() if sent is None else max(begun, sent))

    return deadline


async def _until(session: LiveSession, condition: Callable[[], bool], deadline: Deadline) -> None:
    try:
        await session.wait(condition, deadline)
    except TimeoutError:
        if session.lost is not None:
            waited = f"the stream was lost and is not resumed yet: {session.lost.message}"
        elif session.has_pending or session.ending:
            waited = "the server did not respond before the timeout"
        else:
            waited = "no outputs are pending: send frames first"
        raise DeadlineExceeded(waited, reason="TIMEOUT") from None


class _StreamErrors:
    """Raises StreamLost for Unavailable and Overloaded: a repeat cannot help, as the stream's state is gone."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Unavailable | Overloaded):
            raise StreamLost(error.message, reason=error.reason, request_id=error.request_id) from None
        if isinstance(error, SeqloomError):
            raise error.with_traceback(None) from None


stream_errors = _StreamErrors()
