"""Limits the bytes of one kind that callers may hold on the server, in all and each, such as unread outputs."""

from collections.abc import Callable

from seqloom_server.engine.admission.caller_share import SharedBound
from seqloom_server.engine.core.overload import ONE_SECOND, overloaded
from seqloom_server.errors import Overload, ServerError


class ByteBudget:
    """A limit of bytes that all callers share: of outputs, from when their frames are accepted until they are sent, or
    of training calls that are being received. what: the bytes in words, for the error's message. rejected: called with
    each refusal, for the metrics.
    """

    def __init__(
        self,
        max_bytes: int,
        what: str = "outputs wait to be read by callers",
        *,
        cause: Overload = Overload.UNREAD_OUTPUTS,
        rejected: Callable[[ServerError], None] = lambda _: None,
    ) -> None:
        self._bound = SharedBound(max_bytes)
        self._what = what
        self._cause = cause
        self._rejected = rejected

    def take(self, size: int, caller: str = "") -> None:
        """Charges `size` bytes. Raises ServerError OVERLOADED, and charges nothing, if that would exceed the limit, or
        the caller's part of it."""
        bound = self._bound
        if bound.used and not bound.admits(caller, size):
            full = bound.used + size > bound.limit
            error = overloaded(
                f"memory limit reached: {bound.used if full else bound.held(caller):.0f} of {bound.limit} bytes of "
                f"{self._what}{'' if full else ' of this caller alone'}, and this call needs {size} more",
                ONE_SECOND,
                self._cause,
            )
            self._rejected(error)  # a session's error ends no call
            raise error
        bound.count(caller, size)

    def give(self, size: int, caller: str = "") -> None:
        """Returns `size` charged bytes."""
        if size:
            self._bound.count(caller, -size)
