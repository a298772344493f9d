"""One entry of a StreamInfer request: frames and control flags of one session, encoded when they are sent."""

from dataclasses import dataclass
from typing import Protocol

from seqloom import wire
from seqloom._streaming.stream_budget import BudgetShare
from seqloom.errors import SeqloomError
from seqloom.tensors import Array
from seqloom.v1 import inference_service_pb2

_ENTRIES = inference_service_pb2.StreamInferRequest.ENTRIES_FIELD_NUMBER
_OPEN = inference_service_pb2.SessionRequest.OPEN_FIELD_NUMBER
_FRAMES = inference_service_pb2.SessionRequest.FRAMES_FIELD_NUMBER


class SendingSession(Protocol):
    """The session that an entry belongs to. received: steps whose outputs the caller has received."""

    number: int
    failure: SeqloomError | None
    share: BudgetShare

    @property
    def received(self) -> int: ...


@dataclass(slots=True)
class OutgoingEntry:
    """One entry of a session. open: a serialized OpenSession. held_bytes: bytes of the budget held until it is sent."""

    session: SendingSession
    open: bytes | None = None
    reset: bool = False
    frames: Array | None = None
    end: bool = False
    cancel: bool = False
    held_bytes: int = 0

    @property
    def size(self) -> int:
        """The approximate size of the entry, in bytes."""
        return 64 + len(self.open or b"") + (0 if self.frames is None else self.frames.nbytes)

    def release_budget(self) -> None:
        """Returns its bytes to the budget, as it was written or never will be."""
        if self.held_bytes:
            self.session.share.give_back(self.held_bytes)

    def buffers(self) -> wire.Buffers:
        """Returns the encoded field `entries` of a StreamInferRequest."""
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
