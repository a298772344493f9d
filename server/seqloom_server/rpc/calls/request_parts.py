"""A request that comes in parts: read to its end, and taken only where its last part says that it is the last.

It must say so itself: a grpc.aio server (grpcio 1.85.3) sees a request stream that was cancelled, timed out, cut or
killed end just like one that was finished, while `cancelled()` is still False.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Protocol, TypeVar

from seqloom_server.errors import Reason, ServerError, invalid

SECONDS_WITHOUT_PROGRESS = 30.0  # of a caller that sends parts, or reads them
LEAST_BYTES = 2048  # that a part counts for: about what one takes in memory that has next to nothing in it
_MAX_PASSED_OVER_BYTES = 256 << 20


class Part(Protocol):
    """A message of such a request. parts: how many there are, in the last one; else 0."""

    @property
    def parts(self) -> int: ...

    def ByteSize(self) -> int: ...


P = TypeVar("P", bound=Part)


async def parts_of(requests: AsyncIterator[P]) -> AsyncIterator[P]:
    """Yields the parts; after the last one only when the caller has finished, as it would miss an earlier answer.

    Raises ServerError CUT_OFF where the request ends before its last part, INVALID_FIELD where the count is off,
    DEADLINE_EXCEEDED where the caller falls silent.
    """
    count, last = 0, False
    while (part := await _next(requests)) is not None:
        count += 1
        if last:
            raise invalid("parts", f"is {count - 1}: more parts came after that")
        if part.parts:
            if part.parts != count:
                raise invalid("parts", f"is {part.parts} in part {count}: expected {count} in the last, 0 before it")
            last = True
        yield part
    if count and not last:
        raise ServerError(
            Reason.CUT_OFF,
            f"the request ended after {count} parts, none of which said that it was the last (`parts`, its count of "
            "them): nothing of it was done",
            field="parts",
        )


async def pass_over(requests: AsyncIterator[Part], error: ServerError) -> None:
    """Reads on, up to a bound: a caller that is answered while it still sends may never see the answer.

    error: the answer; one that is silent has been waited for already.
    """
    size = 0
    if error.reason is not Reason.DEADLINE_EXCEEDED:
        with contextlib.suppress(ServerError):
            while size <= _MAX_PASSED_OVER_BYTES and (part := await _next(requests)) is not None:
                size += max(LEAST_BYTES, part.ByteSize())


async def _next(requests: AsyncIterator[Any]) -> Any:
    """The next message, or None where there is no more."""
    try:
        async with asyncio.timeout(SECONDS_WITHOUT_PROGRESS):
            return await anext(requests, None)
    except TimeoutError:
        raise ServerError(
            Reason.DEADLINE_EXCEEDED, f"no further part came for {SECONDS_WITHOUT_PROGRESS:g} s"
        ) from None
