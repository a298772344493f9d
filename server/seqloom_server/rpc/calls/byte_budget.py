"""How many bytes callers may have on the server at once, such as outputs that were promised and not yet read."""

from seqloom_server.engine.core.overload import ONE_SECOND, overloaded


class ByteBudget:
    """What all callers together may have of one kind of bytes at once: outputs, from when their frames are taken until
    they are on their way, or training calls that have not come whole yet. what: that kind, in words.
    """

    def __init__(self, max_bytes: int, what: str = "outputs wait for callers to read them") -> None:
        self._max_bytes = max_bytes
        self._what = what
        self._taken = 0

    def take(self, size: int) -> None:
        """Charges `size` bytes. Raises ServerError OVERLOADED where that is too much now, and charges nothing."""
        if self._taken + size > self._max_bytes and self._taken:
            raise overloaded(f"{self._taken} bytes of {self._what}: {size} more are too many now", ONE_SECOND)
        self._taken += size

    def give(self, size: int) -> None:
        """Takes back a charge."""
        self._taken -= size
