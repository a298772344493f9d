"""Groups of live streams as the asynchronous client offers them: opened together, advanced by arrays."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Self, TypeVar

import numpy.typing as npt

from seqloom import _forks
from seqloom._groups.group_answers import Answer
from seqloom._groups.group_session import GroupSession
from seqloom._messages import arguments
from seqloom._retries import checked_seconds
from seqloom._streaming.stream import stream_errors
from seqloom.errors import Cancelled, DeadlineExceeded, InvalidArgument
from seqloom.tensors import Array
from seqloom.types import GroupChunk, GroupSnapshot, ModelSpec, State

T = TypeVar("T")


class AsyncStreamGroup:
    """A group of n live streams, returned by `client.stream_group` and open inside its `with` block.

    Each stream has a hidden state of its own, on the server. A call advances all of them, or some, and costs about as
    much as a chunk of a single stream. Where an argument `streams` is None, all n are meant; else their numbers, each
    once, from 0 to n - 1. Frames of a call may have at most 64 MiB, and its outputs as well.

    What is wrong with a call, such as a NaN, raises InvalidArgument, also from the calls that were sent behind it;
    nothing of these has run, and the group goes on with the states before. timeout: seconds, by default the group's.
    """

    def __init__(self, open_group: Callable[[], Awaitable[tuple[GroupSession, ModelSpec]]], timeout: float) -> None:
        self._open_group = open_group
        self._timeout = timeout
        self._session: GroupSession | None = None
        self._spec: ModelSpec | None = None

    async def __aenter__(self) -> Self:
        """Opens the group on the server. Raises NotFound, VersionMismatch, Overloaded or Unavailable, among others."""
        if self._session is not None:
            raise InvalidArgument("the group was opened before: create a new one")
        self._session, self._spec = await self._open_group()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the group. Without `finish` its hidden states are lost."""
        if self._session is not None and not _forks.is_forked():
            self._session.cancel(Cancelled("the group is closed", reason="STREAM_CLOSED"))

    async def step(
        self, frames: npt.ArrayLike, streams: npt.ArrayLike | None = None, timeout: float | None = None
    ) -> GroupChunk:
        """Advances streams by their next k frames, [w, k, D], and returns their outputs, [w, k, ...].

        frames: must not change until the outputs are there. k may be 0. Raises DeadlineExceeded.
        """
        session, spec = self._require_open()
        with stream_errors:
            deadline = self._deadline(timeout)
            array, numbers = self._checked(frames, streams, session, spec, "frames")
            answer = await session.send(array, numbers, deadline, kept=False)
            return await self._result(answer, GroupChunk, deadline)

    async def send(
        self, frames: npt.ArrayLike, streams: npt.ArrayLike | None = None, timeout: float | None = None
    ) -> None:
        """Sends frames as of `step`, a copy of them, without waiting for outputs. Waits while the window is full.

        Raises DeadlineExceeded if it is still full at the timeout: receive outputs first.
        """
        session, spec = self._require_open()
        with stream_errors:
            array, numbers = self._checked(frames, streams, session, spec, "frames")
            await session.send(array.copy(), numbers, self._deadline(timeout), kept=True)

    async def receive(self, timeout: float | None = None) -> GroupChunk:
        """Waits for the outputs of the next call of `send`, and returns them.

        Raises DeadlineExceeded; InvalidArgument for a call that failed, or if all outputs were received.
        """
        session, _ = self._require_open()
        with stream_errors:
            if not session.sends:
                raise InvalidArgument("no outputs are pending: send frames first", reason="NOTHING_DUE")
            await self._until(lambda: session.ready, self._deadline(timeout))
            return _checked_result(session.receive(), GroupChunk)

    async def run(self, chunks: Iterable[npt.ArrayLike] | AsyncIterable[npt.ArrayLike]) -> AsyncIterator[GroupChunk]:
        """Sends chunks of frames of all streams, each [n, k, D], and yields the outputs of each as soon as they arrive.

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
                    await self._until(
                        lambda: session.ready or (sending.done() and not session.sends), self._response_deadline()
                    )
                    if not session.ready:
                        break
                    chunk = _checked_result(session.receive(), GroupChunk)
                yield chunk
            await sending
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await sending

    async def reset(self, streams: npt.ArrayLike | None = None) -> None:
        """Sets hidden states to zero before the next call. The counts of steps go on."""
        session, _ = self._require_open()
        with stream_errors:
            session.reset(arguments.stream_numbers(streams, session.count))

    async def state(self, streams: npt.ArrayLike | None = None, timeout: float | None = None) -> State:
        """Returns the hidden states of streams after all frames that were sent, a State of [L, w, H]."""
        session, _ = self._require_open()
        with stream_errors:
            deadline = self._deadline(timeout)
            answer = await session.ask(arguments.stream_numbers(streams, session.count), deadline)
            return await self._result(answer, State, deadline)

    async def set_state(self, state: State, streams: npt.ArrayLike | None = None, timeout: float | None = None) -> None:
        """Replaces hidden states by a State of [L, w, H], after all frames that were sent."""
        session, spec = self._require_open()
        with stream_errors:
            deadline = self._deadline(timeout)
            numbers = arguments.stream_numbers(streams, session.count)
            width = session.count if numbers is None else len(numbers)
            parts = arguments.state_arrays(state, spec, width, "state")
            arguments.check_numbers(parts, spec, "state")
            answers = await session.set(parts, numbers, deadline)
            for answer in answers:
                await self._result(answer, type(None), deadline)

    async def finish(self, timeout: float | None = None) -> State:
        """Ends the group after all frames that were sent; returns the final states, a State of [L, n, H].

        Outputs that were not received yet can still be, by receive(). If it was sent behind a call that failed, it
        raises that failure, and the group goes on.
        """
        session, _ = self._require_open()
        with stream_errors:
            answer = session.end()
            await self._until(lambda: answer.ready, self._deadline(timeout))
            if answer.error is not None:
                raise answer.error
        assert session.final_state is not None
        return session.final_state

    @property
    def count(self) -> int:
        """The number of streams, n."""
        return self._require_open()[0].count

    @property
    def weights_version(self) -> int:
        """The version of the weights, which stays the same while the group lives."""
        return self._require_open()[0].weights_version

    @property
    def window(self) -> int:
        """The most steps (of a stream) that may be sent and not yet received, but for a single call of more."""
        return self._require_open()[0].window

    @property
    def snapshot(self) -> GroupSnapshot | None:
        """The last snapshot that the server sent; None before the first, or without a snapshot_interval."""
        return self._require_open()[0].snapshot

    def _response_deadline(self) -> Callable[[], float]:
        """Returns a deadline: from now, or from when the first pending call was sent, if that is later."""
        session, _ = self._require_open()
        begun = time.monotonic()

        def deadline() -> float:
            sent = session.pending_since
            return self._timeout + (time.monotonic() if sent is None else max(begun, sent))

        return deadline

    async def _send_all(self, chunks: Iterable[npt.ArrayLike] | AsyncIterable[npt.ArrayLike]) -> None:
        if isinstance(chunks, AsyncIterable):
            async for chunk in chunks:
                await self._send_in_time(chunk)
        else:
            for chunk in chunks:
                await self._send_in_time(chunk)
                await asyncio.sleep(0)  # so that a long iterable does not block the event loop

    async def _send_in_time(self, frames: npt.ArrayLike) -> None:
        session, spec = self._require_open()
        with stream_errors:
            array, _ = self._checked(frames, None, session, spec, "chunks")
            await session.send(array.copy(), None, math.inf, kept=True)

    async def _result(self, answer: Answer, kind: type[T], deadline: float) -> T:
        """Waits for an answer. If the wait ends before, the call still runs, and its answer is dropped."""
        session, _ = self._require_open()
        try:
            if not answer.ready:
                await self._until(lambda: answer.ready, deadline)
        except BaseException:
            session.abandon(answer)
            raise
        session.count_received(answer)
        return _checked_result(answer, kind)

    async def _until(self, condition: Callable[[], bool], deadline: float | Callable[[], float]) -> None:
        session, _ = self._require_open()
        try:
            await session.wait(condition, deadline)
        except TimeoutError:
            waited = "the server did not respond before the timeout"
            if session.lost is not None:
                waited = f"the group was lost and is not resumed yet: {session.lost.message}"
            raise DeadlineExceeded(waited, reason="TIMEOUT") from None

    @staticmethod
    def _checked(
        frames: npt.ArrayLike, streams: npt.ArrayLike | None, session: GroupSession, spec: ModelSpec, name: str
    ) -> tuple[Array, Array | None]:
        """Returns frames [w, k, D] and the numbers of their streams, int32 [w], None for all."""
        numbers = arguments.stream_numbers(streams, session.count)
        return arguments.group_frames(frames, spec, session.count if numbers is None else len(numbers), name), numbers

    def _require_open(self) -> tuple[GroupSession, ModelSpec]:
        _forks.check_not_forked()
        if self._session is None or self._spec is None:
            raise InvalidArgument("the group is not open: use it inside `with client.stream_group(...) as group:`")
        return self._session, self._spec

    def _deadline(self, timeout: float | None) -> float:
        return time.monotonic() + (self._timeout if timeout is None else checked_seconds(timeout, "timeout"))


def _checked_result(answer: Answer, kind: type[T]) -> T:
    """Returns what a call was answered by. Raises the error of one that failed."""
    if answer.error is not None:
        raise answer.error
    assert isinstance(answer.result, kind)
    return answer.result
