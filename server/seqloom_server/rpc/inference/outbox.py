"""The queue of outgoing entries of one StreamInfer call, and how they are packed into messages.

All entries that are queued when the transport is free are sent in one message, so messages get fewer as load grows.
"""

import asyncio
import collections
from typing import Protocol

from seqloom import wire
from seqloom.v1 import inference_service_pb2

from seqloom_server.rpc.calls.byte_budget import ByteBudget

# of outputs, promised or computed, beyond which no more requests are read from the caller
_MAX_UNREAD_BYTES = 64 << 20


class Entry(Protocol):
    """What is queued: an entry of a session or of a group.

    promised: bytes charged for its outputs. live: whether it is of a live session. size: its approximate bytes. large:
    whether it is faster to write its values into the message's bytes without protobuf, as buffers() does.
    """

    promised: int
    live: bool

    @property
    def size(self) -> int: ...

    @property
    def large(self) -> bool: ...

    def buffers(self) -> wire.Buffers: ...

    def add_to(self, message: inference_service_pb2.StreamInferResponse) -> None: ...


class Outbox:
    """A queue of outgoing entries. `changed` is set whenever one is added.

    max_message_bytes: of a message, unless a single entry is larger. budget: charged for outputs, as the caller's.
    full: whether the call's unread outputs, and those to come of live sessions, have reached their limit. Those to come
    of whole sequences are only charged: what is read late could not be refused at once.
    """

    def __init__(self, max_message_bytes: int, budget: ByteBudget, caller: str) -> None:
        self.changed = asyncio.Event()
        self._max_message_bytes = max_message_bytes
        self._budget = budget
        self._caller = caller
        self._entries: collections.deque[tuple[Entry, int]] = collections.deque()  # with their sizes
        self._bytes = 0
        self._promised = 0
        self.full = False
        self._room = asyncio.Event()
        self._room.set()

    def __len__(self) -> int:
        return len(self._entries)

    def promise(self, size: int, *, live: bool) -> None:
        """Charges `size` bytes for outputs to come. Raises ServerError OVERLOADED, and then charges nothing."""
        self._budget.take(size, self._caller)
        if live:
            self._promised += size
            self._update_full()

    def withdraw(self, size: int, *, live: bool) -> None:
        """Returns `size` charged bytes of outputs that will not come."""
        self._budget.give(size, self._caller)
        if live:
            self._promised -= size
            self._update_full()

    def put(self, outgoing: Entry) -> None:
        """Adds an entry, whose outputs have been promised."""
        size = outgoing.size
        self._entries.append((outgoing, size))
        self._bytes += size
        if outgoing.live:
            self._promised -= outgoing.promised
        self._update_full()
        self.changed.set()

    async def has_room(self) -> None:
        """Waits until the caller has read enough outputs."""
        await self._room.wait()

    def next_message(self) -> bytes:
        """Removes as many entries as fit one message, at least one; returns the bytes of a StreamInferResponse."""
        parts: wire.Buffers = []
        message = inference_service_pb2.StreamInferResponse()
        room = self._max_message_bytes
        while self._entries and (room == self._max_message_bytes or self._entries[0][1] <= room):
            outgoing, size = self._entries.popleft()
            if outgoing.large:
                parts += [message.SerializeToString(), *outgoing.buffers()]
                message.Clear()
            else:
                outgoing.add_to(message)
            room -= size
            self._bytes -= size
            self._budget.give(outgoing.promised, self._caller)
        self._update_full()
        return wire.joined([*parts, message.SerializeToString()])

    def clear(self) -> None:
        """Drops all entries."""
        self._budget.give(sum(outgoing.promised for outgoing, _ in self._entries), self._caller)
        self._entries.clear()
        self._bytes = 0
        self._update_full()

    def _update_full(self) -> None:
        full = self._bytes + self._promised > _MAX_UNREAD_BYTES
        if full != self.full:
            self.full = full
            if full:
                self._room.clear()
            else:
                self._room.set()
