"""How often the SDK asks for a snapshot: so seldom that it costs little, so often that what is kept stays small.

A snapshot costs both sides about half as much as a chunk, so many chunks share one; and the bytes of a state should be
few beside those of the frames between two of them. What is kept is bounded for each stream, and asked for more often
while a client has many of them.
"""

from seqloom._streaming.call_pauses import CallPauses

_BYTES = 512 << 10  # of frames between two snapshots
_GROUP_BYTES = 8 << 20  # of all streams of a group
_LEAST_BYTES = 64 << 10
_CLIENT_BYTES = 256 << 20  # that all streams of a client keep, about
_ENTRIES = 128  # between two snapshots
_STATES = 64  # times the bytes of a state, if that is more
_MOST_BYTES = 32 << 20  # if it is less
_INTERVALS = 4  # that are kept at most, beside a chunk: what is on its way, and what is not answered


class SnapshotInterval:
    """When a stream, or a group of `streams`, asks for the next snapshot. state_bytes: of its states."""

    __slots__ = ("__weakref__", "_bytes", "_entries", "_interval", "_most", "_open", "state_bytes")

    def __init__(self, pauses: CallPauses, streams: int = 1) -> None:
        self.state_bytes = 0
        self._most = min(_BYTES * streams, _GROUP_BYTES)
        self._open = pauses.open
        self._open.add(self)
        self.restart()

    def end(self) -> None:
        """Ends it with its stream."""
        self._open.discard(self)

    def sent(self, size: int) -> bool:
        """Counts the frames of an entry that is sent; returns whether it should ask for a snapshot."""
        self._bytes += size
        self._entries += 1
        if self._entries < _ENTRIES and self._bytes < self._interval:
            return False
        self.restart()
        return True

    def restart(self) -> None:
        """Begins anew: a snapshot was asked for, or all that is kept is sent again."""
        self._bytes = self._entries = 0
        each = max(_LEAST_BYTES, min(self._most, _CLIENT_BYTES // max(1, len(self._open))))
        self._interval = min(max(each, _STATES * self.state_bytes), _MOST_BYTES)

    def again(self) -> None:
        """Lets the next entry ask: the last question was not answered."""
        self._bytes = _MOST_BYTES

    @property
    def most(self) -> int:
        """The bytes that may be kept for sure."""
        return _INTERVALS * self._interval

    def has_room(self, kept: int, size: int) -> bool:
        """Returns whether frames may be kept beside those that are: else a snapshot is on its way."""
        interval = self._interval
        return kept + size <= _INTERVALS * interval or kept <= interval or self._bytes >= interval
