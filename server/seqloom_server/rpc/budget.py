"""How many bytes of outputs may be promised or computed and not yet read, over all callers of the server."""

from seqloom_server.errors import Reason, ServerError


class OutputBudget:
    """What every output is charged to from when its frames are taken until it is on its way to the caller.

    max_bytes: of all callers together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._taken = 0

    def take(self, size: int) -> None:
        """Charges `size` bytes. Raises ServerError OVERLOADED where that is too much now, and charges nothing."""
        if self._taken + size > self._max_bytes and self._taken:
            raise ServerError(
                Reason.OVERLOADED,
                f"{self._taken} bytes of outputs wait for callers to read them: {size} more are too many now",
                retry_after=1.0,
            )
        self._taken += size

    def give(self, size: int) -> None:
        """Takes back a charge."""
        self._taken -= size
