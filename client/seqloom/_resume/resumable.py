"""What sessions and groups that can be resumed have in common: which failures they survive, and how they end."""

from abc import abstractmethod
from typing import Protocol

from seqloom._resume.reattachment import Reattachment
from seqloom._streaming.call_pauses import CallPauses
from seqloom._streaming.outgoing_entry import Entry
from seqloom._streaming.session import CallSession
from seqloom.errors import SeqloomError, Unavailable
from seqloom.v1 import inference_service_pb2


class Calls(Protocol):
    """Where what was lost goes on."""

    pauses: CallPauses

    def attach(self, session: CallSession) -> None:
        """Puts it on the present call, or on a new one. Raises Cancelled once the client is closed."""


class Resumable(CallSession):
    """A session or a group that is opened again after its call broke, or its server went away."""

    _fingerprint = b""  # of its weights, once it is open
    _reattachment: Reattachment

    @property
    def lost(self) -> SeqloomError | None:
        """Why it is on no call at present; None while it is."""
        return self._reattachment.lost

    def fail(self, error: SeqloomError) -> None:
        """Ends it with an error, unless it has ended or can be resumed."""
        if self._fingerprint and not self.ended and self._reattachment.takes(error):
            self.number, self.opened = 0, False  # so that nothing more is sent on the call where it was
            self._prepare_return()
            self._reattachment.lose(error)
            self.notify()
        else:
            super().fail(self._reattachment.final(error))
            self._stop()

    def closed(self) -> None:
        """Forgets what is kept, if it has ended."""
        if self.ended:
            self._stop()

    def give_up(self, error: SeqloomError) -> None:
        """Ends it with an error: it cannot be resumed."""
        if not self.ended:
            self._queue.put(self._cancelling())
        super().fail(error)
        self._stop()

    def _go_away(self) -> None:
        """Leaves a server that is shutting down, and goes on elsewhere."""
        self._queue.leave()
        self._queue.put(self._cancelling())
        self.fail(Unavailable("the server is shutting down", reason="SHUTTING_DOWN"))

    def _reopened(self, opened: inference_service_pb2.SessionOpened) -> bool:
        """Returns whether `opened` is that of a resumption, which is over then."""
        if not self._fingerprint:
            self._fingerprint = opened.fingerprint
            return False
        self.window = opened.window_steps  # the version that was told stays: the numbers are the same
        self._reattachment.attached()
        return True

    def _stop(self) -> None:
        """Forgets what is kept, as it has ended."""
        self._reattachment.stop()

    @abstractmethod
    def reopen(self) -> None:
        """Opens it again on a call. Raises Cancelled once the client is closed."""

    @abstractmethod
    def _prepare_return(self) -> None:
        """Lets all that is kept be sent again."""

    @abstractmethod
    def _cancelling(self) -> Entry:
        """Returns the entry that drops it on its call."""
