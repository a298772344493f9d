"""Limits the bytes of one kind that all callers together may hold on the server, such as unread outputs."""

from seqloom_server.engine.core.overload import ONE_SECOND, overloaded


class ByteBudget:
    """A limit of bytes that all callers share: of outputs, from when their frames are accepted until they are sent, or
    of training calls that are being received. what: the bytes in words, for the error's message.
    """

    def __init__(self, max_bytes: int, what: str = "outputs wait to be read by callers") -> None:
        self._max_bytes = max_bytes
        self._what = what
        self._taken = 0

    def take(self, size: int) -> None:
        """Charges `size` bytes. Raises ServerError OVERLOADED, and charges nothing, if that would exceed the limit."""
        if self._taken + size > self._max_bytes and self._taken:
            raise overloaded(
                f"memory limit reached: {self._taken} of {self._max_bytes} bytes of {self._what}, "
                f"and this call needs {size} more",
                ONE_SECOND,
            )
        self._taken += size

    def give(self, size: int) -> None:
        """Returns `size` charged bytes."""
        self._taken -= size
