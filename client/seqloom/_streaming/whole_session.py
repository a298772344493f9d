"""The client's side of a whole sequence: a session whose frames are all there.

They do not count against the stream budget, as the caller asked for all the outputs at once.
"""

from collections.abc import Callable

from seqloom._streaming.outgoing_entry import OutgoingEntry
from seqloom._streaming.session import EntryQueue, Session, rows_per_entry
from seqloom.errors import SeqloomError
from seqloom.tensors import Array
from seqloom.v1 import inference_service_pb2


class WholeSession(Session):
    """The session of a sequence, [T, D], which must not change until the session has ended.

    deadline: on time.monotonic's clock; the server is told what is left of it. answered: called with the session's
    failure, or None, once the server has said anything of it.
    """

    def __init__(
        self,
        queue: EntryQueue,
        number: int,
        window: int,
        frames: Array,
        deadline: float,
        *,
        frames_name: str = "frames",
        answered: Callable[[SeqloomError | None], None] | None = None,
    ) -> None:
        super().__init__(queue, number, window, frames_name)
        self._frames = frames
        self._deadline = deadline
        self._answered = answered
        self._asked = False

    def open(self, message: inference_service_pb2.OpenSession, *, ask: bool = False) -> None:
        """Opens the session, and sends as many frames with it as the window allows.

        ask: sends none until the server has admitted them.
        """
        frames = self._frames
        self._asked = ask
        self._chunks.expect(len(frames), received_on_arrival=True)
        part = frames[: 0 if ask else min(self.window, rows_per_entry(frames))]
        self.sent = len(part)
        self.ending = len(part) == len(frames)
        if not self.ending:
            message.whole_sequence, message.total_steps = True, len(frames)
        self._queue.put(
            OutgoingEntry(
                self,
                open=message.SerializeToString(),
                frames=None if ask else part,
                end=self.ending,
                deadline=self._deadline,
                tell_timeout=True,
            )
        )

    async def send_rest(self) -> None:
        """Sends the frames that open() has not sent, and the end of the sequence. Raises TimeoutError."""
        frames = self._frames
        if self._asked:
            await self.wait(lambda: self.weights_version > 0, self._deadline)
        while self.sent < len(frames):
            await self.wait(lambda: self.room > 0, self._deadline)
            part = frames[self.sent : self.sent + min(self.room, rows_per_entry(frames))]
            self.sent += len(part)
            self.ending = self.sent == len(frames)
            self._queue.put(OutgoingEntry(self, frames=part, end=self.ending, deadline=self._deadline))

    async def finished(self) -> None:
        """Waits until all outputs have arrived. Raises the session's failure, and TimeoutError at the deadline."""
        await self.wait(lambda: self.final_state is not None, self._deadline)

    def take(self, entry: inference_service_pb2.SessionResponse) -> None:
        """Handles a response of the server for this session."""
        super().take(entry)
        if self._answered is not None:
            answered, self._answered = self._answered, None
            answered(self.failure)
