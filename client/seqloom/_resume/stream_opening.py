"""How a live stream is opened on a server: as a session that is resumed after a failure, or as one that is not."""

from seqloom._resume.resuming_session import ResumingSession
from seqloom._streaming.live_session import LiveSession
from seqloom._streaming.session import EntryQueue
from seqloom._streaming.shared_call import SessionKind, SharedCall
from seqloom._streaming.stream_budget import StreamBudget
from seqloom.v1 import inference_service_pb2


async def open_stream(
    calls: SharedCall,
    message: inference_service_pb2.OpenSession,
    kind: SessionKind,
    deadline: float,
    resume_seconds: float | None,
) -> LiveSession:
    """Opens a live session, waiting for the server. Raises DeadlineExceeded and the server's errors.

    resume_seconds: for which it is tried to resume it after a failure; None if it should fail with its call.
    """

    def make(queue: EntryQueue, number: int, window: int, budget: StreamBudget) -> LiveSession:
        if resume_seconds is None:
            return LiveSession(queue, number, window, budget=budget)
        return ResumingSession(
            queue, number, window, budget=budget, calls=calls, opening=message, seconds=resume_seconds
        )

    return await calls.open_session(message, kind, deadline, make)
