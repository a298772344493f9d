"""Reads a request that is sent in parts, and accepts it only if its last part says that it is the last.

A grpc.aio server (grpcio 1.85.3) cannot tell otherwise: a request stream that was cancelled, timed out, cut or killed
ends just like a finished one, while `cancelled()` is still False.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol, TypeVar

from seqloom_server.errors import Reason, ServerError, invalid

SECONDS_WITHOUT_PROGRESS = 30.0  # after which a caller that neither sends nor reads parts is given up
LEAST_BYTES = 2048  # that a part is charged: about the memory that an empty one takes
_MAX_PASSED_OVER_BYTES = 256 << 20


class Part(Protocol):
    """A message of a request in parts. parts: the number of parts in the last one, 0 in the others."""

    @property
    def parts(self) -> int: ...

    def ByteSize(self) -> int: ...


P = TypeVar("P", bound=Part)


async def parts_of(requests: AsyncIterator[P]) -> AsyncIterator[P]:
    """Yields the parts, and returns once the caller has closed the request, as it may miss an earlier response.

    Raises ServerError CUT_OFF if the request ends before its last part, INVALID_FIELD for a wrong count of parts,
    DEADLINE_EXCEEDED if no next part arrives in time.
    """
    count, last = 0, False
    while (part := await _next(requests)) is not None:
        count += 1
        if last:
            raise invalid("parts", f"is {count - 1}: more parts arrived after that one")
        if part.parts:
            if part.parts != count:
                raise invalid("parts", f"is {part.parts} in part {count}: expected {count} in the last, 0 in others")
            last = True
        yield part
    if count and not last:
        raise ServerError(
            Reason.CUT_OFF,
            f"the request ended after {count} parts without a last one, in which `parts` is their count: nothing was "
            "done",
            field="parts",
        )


async def pass_over(requests: AsyncIterator[Part], error: ServerError) -> None:
    """Reads and drops the rest of a request, up to a limit: a caller may miss an error that arrives while it sends.

    error: the error to be sent; after DEADLINE_EXCEEDED nothing is read.
    """
    size = 0
    if error.reason is not Reason.DEADLINE_EXCEEDED:
        with contextlib.suppress(ServerError):
            while size <= _MAX_PASSED_OVER_BYTES and (part := await _next(requests)) is not None:
                size += max(LEAST_BYTES, part.ByteSize())


async def _next(requests: AsyncIterator[P]) -> P | None:
    """Returns the next message, or None at the end."""
    try:
        async with asyncio.timeout(SECONDS_WITHOUT_PROGRESS):
            return await anext(requests, None)
    except TimeoutError:
        raise ServerError(
            Reason.DEADLINE_EXCEEDED, f"no further part arrived for {SECONDS_WITHOUT_PROGRESS:g} s"
        ) from None
