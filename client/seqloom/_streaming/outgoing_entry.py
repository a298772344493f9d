"""What waits to be sent for one session: arrays, which are written when the message that takes them is."""

from dataclasses import dataclass
from typing import Protocol

from seqloom import wire
from seqloom._streaming.stream_budget import Share
from seqloom.errors import SeqloomError
from seqloom.tensors import Array
from seqloom.v1 import inference_service_pb2

_ENTRIES = inference_service_pb2.StreamInferRequest.ENTRIES_FIELD_NUMBER
_OPEN = inference_service_pb2.SessionRequest.OPEN_FIELD_NUMBER
_FRAMES = inference_service_pb2.SessionRequest.FRAMES_FIELD_NUMBER


class Sender(Protocol):
    """The session, as its entries see it. received: steps whose outputs the caller has received."""

    number: int
    failure: SeqloomError | None
    share: Share

    @property
    def received(self) -> int: ...


@dataclass(slots=True)
class OutgoingEntry:
    """One entry of a session. open: an OpenSession's bytes. kept: what it holds of the session's share meanwhile."""

    session: Sender
    open: bytes | None = None
    reset: bool = False
    frames: Array | None = None
    end: bool = False
    cancel: bool = False
    kept: int = 0

    @property
    def size(self) -> int:
        """About how many bytes the entry takes."""
        return 64 + len(self.open or b"") + (0 if self.frames is None else self.frames.nbytes)

    def gone(self) -> None:
        """Says that it waits no more: it was written, or never will be."""
        if self.kept:
            self.session.share.give_back(self.kept)

    def buffers(self) -> wire.Buffers:
        """Returns this as an entry of a StreamInferRequest."""
        head = inference_service_pb2.SessionRequest(
            session=self.session.number,
            acknowledged_steps=0 if self.frames is None else self.session.received,
            reset=self.reset,
            end=self.end,
            cancel=self.cancel,
        ).SerializeToString()
        if self.open is not None:
            head += wire.delimiter(_OPEN, len(self.open)) + self.open
        return wire.message(_ENTRIES, [head] if self.frames is None else wire.tensor(_FRAMES, self.frames, head))
