"""One attempt at a call on a run: sends it under its number, and records the reply or the refusal in the log."""

import asyncio
import copy
import secrets
from dataclasses import dataclass

from seqloom._connection.channel import Channel
from seqloom._connection.service_stubs import CallOptions
from seqloom._training.call_log import CallLog, LoggedCall
from seqloom._training.run_requests import REFUSED, RunRequest
from seqloom.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    Overloaded,
    PermissionDenied,
    SeqloomError,
    Unauthenticated,
    Unavailable,
    checked_reply,
    from_transport,
)
from seqloom.v1.training_service_pb2 import CallId, GetRunRequest, Run


@dataclass(slots=True, eq=False)
class PendingCall:
    """A request and the future of its result. internal: no caller waits for it. last_error: why it is delayed."""

    request: RunRequest[object]
    future: asyncio.Future[object]
    internal: bool = False
    last_error: SeqloomError | None = None

    @property
    def awaited(self) -> bool:
        """Whether a caller waits for the result."""
        return not self.internal and not self.future.done()

    def fail(self, error: SeqloomError) -> None:
        """Raises the error in the caller, unless the call has ended."""
        if not self.future.done():
            self.future.set_exception(copy.copy(error))  # each copy gets its own traceback


class CallAttempts:
    """Sends one client's calls on a run. client: its random name. log: of its calls. options: of every call."""

    def __init__(self, run: str, channel: Channel, options: CallOptions) -> None:
        self.client = secrets.token_hex(16)
        self.log: CallLog[PendingCall] = CallLog()
        self._run = run
        self._channel = channel
        self._options = options

    async def send(self, logged: LoggedCall[PendingCall]) -> None:
        """Sends a call and records the reply or the refusal. Raises errors after which it must be sent again."""
        call = logged.call
        request = REFUSED if call is None else call.request
        number = CallId(
            run=self._run,
            client=self.client,
            number=logged.number,
            acknowledged=min(self.log.acknowledged, logged.number - 1),
            step=logged.step,
        )
        try:
            reply = await request.send(self._channel, number, logged.calls, self._options)
        except (Exception, asyncio.CancelledError) as failed:
            error = failed if isinstance(failed, SeqloomError) else from_transport(failed)
            if error is None:
                raise
            if _is_unanswered(error) or is_fatal(error):
                raise error from None
            self.log.refuse(logged)
            if call is not None:
                call.fail(error)
                await self.send(logged)  # so that its number is used up, if it was refused before it was counted
            return
        if call is None:
            raise Internal("the server accepted a call that it had refused", reason="MALFORMED_REPLY")
        self.log.answer(logged, reply.step, reply.calls, reply.calls_durable)
        if not call.future.done():
            call.future.set_result(reply.result)

    async def send_lost(self) -> None:
        """Asks the server which calls it has, and sends the others again, one after the other. Raises SeqloomError."""
        try:
            request_progress = GetRunRequest(run=self._run, client=self.client)
            reply = checked_reply(await self._channel.training.GetRun(request_progress, **self._options))
        except (Exception, asyncio.CancelledError) as failed:
            error = failed if isinstance(failed, SeqloomError) else from_transport(failed)
            if error is None:
                raise
            raise error from None
        run: Run = reply.run
        self.log.settle(run.calls_durable)
        try:
            lost = self.log.lost(run.calls_done)
        except LookupError as missing:
            raise Internal(
                f"the server has lost calls that it reported as durable: {missing}", reason="CALLS_LOST"
            ) from None
        for logged in lost:
            await self.send(logged)


def _is_unanswered(error: SeqloomError) -> bool:
    """Whether it is unknown if the call was done, so that it must be sent again."""
    return isinstance(error, Overloaded | Unavailable | DeadlineExceeded | Cancelled)


def is_fatal(error: SeqloomError) -> bool:
    """Whether no call can be delivered until the caller acts."""
    refused = isinstance(error, Unauthenticated | PermissionDenied)
    return refused or error.reason in ("RUN_NOT_FOUND", "RUN_BROKEN", "CALLS_LOST", "MALFORMED_REPLY")
