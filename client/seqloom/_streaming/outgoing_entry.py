"""One entry of a StreamInfer request: frames and control flags of one session, encoded when they are sent."""

import math
from dataclasses import dataclass, field
from typing import Protocol

from seqloom import wire
from seqloom.errors import SeqloomError
from seqloom.tensors import Array
from seqloom.v1 import inference_service_pb2

_ENTRIES = inference_service_pb2.StreamInferRequest.ENTRIES_FIELD_NUMBER
_OPEN = inference_service_pb2.SessionRequest.OPEN_FIELD_NUMBER
_FRAMES = inference_service_pb2.SessionRequest.FRAMES_FIELD_NUMBER
_TIMEOUT = inference_service_pb2.OpenSession.TIMEOUT_SECONDS_FIELD_NUMBER


class SendingSession(Protocol):
    """The session that an entry belongs to. number: on its call; another one once it has left that.

    acknowledged: steps whose outputs the caller has received, as the server counts them. opened: whether the entry that
    opens it was written, so that the server may know it.
    """

    number: int
    failure: SeqloomError | None
    opened: bool

    @property
    def acknowledged(self) -> int: ...

    def cancel(self, error: SeqloomError) -> None: ...

    def release_budget(self, size: int) -> None: ...


class Entry(Protocol):
    """What is queued to be sent. cancel: whether it drops its session; opens: whether it opens it.

    deadline: on time.monotonic's clock, after which it is not written. size: its approximate bytes.
    """

    deadline: float

    @property
    def session(self) -> SendingSession: ...

    @property
    def number(self) -> int:
        """The session's number when the entry was made."""

    @property
    def cancel(self) -> bool: ...

    @property
    def opens(self) -> bool: ...

    @property
    def size(self) -> int: ...

    @property
    def is_dead(self) -> bool:
        """Whether it will not be written, as its session has failed, or has left the call."""

    def release_budget(self) -> None:
        """Returns its bytes to the budget, as it was written or never will be."""

    def buffers(self, now: float) -> wire.Buffers:
        """Returns the encoded field of a StreamInferRequest. now: on time.monotonic's clock."""


@dataclass(slots=True)
class OutgoingEntry:
    """One entry of a session. open: a serialized OpenSession. held_bytes: bytes of the budget held until it is sent.

    snapshot: whether it asks for one. deadline: on time.monotonic's clock, after which it is not written. tell_timeout:
    whether `open` gets the seconds that are left until then, counted when it is written: an entry may wait long for a
    connection that is busy.
    """

    session: SendingSession
    open: bytes | None = None
    reset: bool = False
    frames: Array | None = None
    end: bool = False
    cancel: bool = False
    held_bytes: int = 0
    deadline: float = math.inf
    tell_timeout: bool = False
    snapshot: bool = False
    number: int = field(init=False)

    def __post_init__(self) -> None:
        self.number = self.session.number

    @property
    def opens(self) -> bool:
        """Whether it opens the session."""
        return self.open is not None

    @property
    def size(self) -> int:
        """The approximate size of the entry, in bytes."""
        return 64 + len(self.open or b"") + (0 if self.frames is None else self.frames.nbytes)

    @property
    def is_dead(self) -> bool:
        session = self.session
        return (session.failure is not None or session.number != self.number) and not self.cancel

    def release_budget(self) -> None:
        if self.held_bytes:
            self.session.release_budget(self.held_bytes)

    def buffers(self, now: float) -> wire.Buffers:
        head = inference_service_pb2.SessionRequest(
            session=self.number,
            acknowledged_steps=0 if self.frames is None else self.session.acknowledged,
            reset=self.reset,
            end=self.end,
            cancel=self.cancel,
            snapshot=self.snapshot,
        ).SerializeToString()
        if self.open is not None:
            opening = self.open
            if self.tell_timeout and self.deadline < math.inf:
                opening += wire.double(_TIMEOUT, self.deadline - now)
            head += wire.delimiter(_OPEN, len(opening)) + opening
        return wire.message(_ENTRIES, [head] if self.frames is None else wire.tensor(_FRAMES, self.frames, head))
