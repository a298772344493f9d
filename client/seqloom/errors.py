"""Every error that the SDK raises, one tree, and how the server's answers become it.

SeqloomError
├── InvalidArgument      an argument, or something this server never takes; a repeat is no use
├── NotFound             no such model, run or checkpoint
├── AlreadyExists        a model of that name is there already
├── VersionMismatch      the weights version demanded is not the one served
├── Overloaded           more than the server takes now; nothing was done; `retry_after` seconds
├── Unavailable          the server cannot be reached, or is shutting down
├── StreamLost           the connection under an open stream broke, or the server dropped it: its state is gone
├── DeadlineExceeded     the timeout passed, or the server ended a stream that was idle too long
├── Cancelled            the client was closed, or the server cancelled the call
├── Unauthenticated      no token, or one that is not known
├── PermissionDenied     the token does not allow this
└── Internal             a bug; `request_id` finds its traceback in the server's log
"""

import asyncio
import math
import time
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

T = TypeVar("T")


class SeqloomError(Exception):
    """The base of every error that the SDK raises.

    message: what was wrong, in words. reason: a constant for programs, such as "MODEL_NOT_FOUND", or "". request_id:
    what the server's log has for this request, or "" where the error did not come from a server.
    """

    def __init__(self, message: str, *, reason: str = "", request_id: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.request_id = request_id


class InvalidArgument(SeqloomError):
    """An argument is wrong in itself, or more than this server ever takes."""

    def __init__(self, message: str, *, reason: str = "INVALID_FIELD", request_id: str = "") -> None:
        super().__init__(message, reason=reason, request_id=request_id)


class NotFound(SeqloomError):
    """What was named does not exist."""


class AlreadyExists(SeqloomError):
    """What was to be created exists."""


class VersionMismatch(SeqloomError):
    """The weights version demanded is not the one served."""


class Overloaded(SeqloomError):
    """More than the server takes now; nothing was done.

    retry_after: seconds after which a repeat may succeed.
    """

    def __init__(self, message: str, *, reason: str = "", request_id: str = "", retry_after: float = 0.0) -> None:
        super().__init__(message, reason=reason, request_id=request_id)
        self.retry_after = retry_after


class Unavailable(SeqloomError):
    """The server cannot be reached, is shutting down, or the call broke before an answer came."""


class StreamLost(SeqloomError):
    """The connection under an open stream broke: what was due is lost, and the state on the server is gone."""


class DeadlineExceeded(SeqloomError):
    """The timeout passed first."""


class Cancelled(SeqloomError):
    """The client was closed, or the server cancelled the call."""


class Unauthenticated(SeqloomError):
    """No token, or one that the server does not know."""


class PermissionDenied(SeqloomError):
    """The token does not allow this."""


class Internal(SeqloomError):
    """A bug, or an answer that is none of this protocol."""


# What gRPC calls a stream that was reset, or that ended while it was written to; with a request id it is the server's.
_BROKEN = (grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED)
_CLOCKS_APART = 0.01  # seconds by which gRPC may think a deadline over before we do

_BY_CODE: dict[int, type[SeqloomError]] = {
    code_pb2.INVALID_ARGUMENT: InvalidArgument,
    code_pb2.FAILED_PRECONDITION: InvalidArgument,
    code_pb2.OUT_OF_RANGE: InvalidArgument,
    code_pb2.RESOURCE_EXHAUSTED: InvalidArgument,  # a size limit, unless RetryInfo says that it is load
    code_pb2.NOT_FOUND: NotFound,
    code_pb2.ALREADY_EXISTS: AlreadyExists,
    code_pb2.UNAVAILABLE: Unavailable,
    code_pb2.DEADLINE_EXCEEDED: DeadlineExceeded,
    code_pb2.CANCELLED: Cancelled,
    code_pb2.UNAUTHENTICATED: Unauthenticated,
    code_pb2.PERMISSION_DENIED: PermissionDenied,
}


def from_status(status: status_pb2.Status) -> SeqloomError:
    """Returns the error that a google.rpc.Status stands for, by its code, ErrorInfo and RetryInfo."""
    reason, request_id, retry_after = "", "", None
    for detail in status.details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        try:
            if detail.Unpack(info):
                reason, request_id = info.reason, info.metadata["request_id"]
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        except DecodeError:
            continue
    message = status.message or "the server gave no message"
    if status.code == code_pb2.RESOURCE_EXHAUSTED and retry_after is not None:
        return Overloaded(message, reason=reason, request_id=request_id, retry_after=retry_after)
    kind = VersionMismatch if reason == "VERSION_MISMATCH" else _BY_CODE.get(status.code, Internal)
    return kind(message, reason=reason, request_id=request_id)


def from_rpc(error: grpc.aio.AioRpcError) -> SeqloomError:
    """Returns the error that a failed call stands for, by its rich details where it has them, else by its code."""
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it reads what both kinds of call have
    except (ValueError, DecodeError):  # details that contradict the code, or are no Status
        status = None
    if status is None:
        code = error.code()
        number = code.value[0] if code is not None else code_pb2.UNKNOWN
        status = status_pb2.Status(code=number, message=error.details() or "")
    found = in_callers_words(from_status(status), "xs")
    found.reason = found.reason or code_pb2.Code.Name(status.code)
    return found


def from_transport(error: BaseException, deadline: float = math.inf) -> SeqloomError | None:
    """Returns the error that stands for whatever gRPC ended a call with; None for what did not come from gRPC, such as
    the cancellation of the task that waits.

    deadline: the call's, on time.monotonic's clock. Where a call ends while its request is still being written, a
    grpc.aio client (grpcio 1.85.3, issue 36066) forgets the status that it ended with, and raises INTERNAL, an
    InvalidStateError, or an asyncio.CancelledError that nobody asked for.
    """
    if isinstance(error, grpc.aio.AioRpcError):
        found = from_rpc(error)
        if error.code() not in _BROKEN or found.request_id:
            return found
        words = found.message
    elif isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is None or task.cancelling():
            return None
        words = "it was cancelled"
    elif isinstance(error, asyncio.InvalidStateError | grpc.aio.BaseError):
        words = str(error)
    else:
        return None
    if time.monotonic() >= deadline - _CLOCKS_APART:
        return DeadlineExceeded("the timeout passed while the call was under way", reason="DEADLINE_EXCEEDED")
    return Unavailable(f"the connection to the server broke: {words}", reason="CALL_LOST")


def arrived(reply: T | None) -> T:
    """Returns a message that came. Raises Internal for None, which is what gRPC makes of one that it cannot read."""
    if reply is None:
        raise Internal("the server sent what cannot be read", reason="MALFORMED_REPLY")
    return reply


def in_callers_words(error: SeqloomError, frames: str) -> SeqloomError:
    """Renames the wire's fields in an error to the SDK's arguments; `frames` is the one with the frames."""
    names = (
        ("entries.frames", frames),
        ("entries.open.output", "outputs"),
        ("entries.open.", ""),
        ("examples.sequences.rows", frames),
        ("examples.sequences.lengths", frames),
        ("examples.sequences", frames),
        ("examples.", ""),
    )
    for field, name in names:
        if error.message.startswith(field):
            error.message = name + error.message.removeprefix(field)
            error.args = (error.message,)
            break
    return error
