"""The exceptions that the SDK raises, and how gRPC statuses are converted to them.

SeqloomError
├── InvalidArgument      a wrong argument, or one that exceeds the server's limits; a repeat cannot help
├── NotFound             the model, run or checkpoint does not exist
├── AlreadyExists        a model of this name exists
├── VersionMismatch      the required version of the weights is not served
├── Overloaded           the server is overloaded and has done nothing; repeat after `retry_after` seconds
├── Unavailable          the server cannot be reached, or is shutting down
├── StreamLost           the connection of an open stream broke, or the server dropped it, and it is not resumed
├── DeadlineExceeded     the timeout passed, or the server ended a stream that was idle too long
├── Cancelled            the client was closed, or the server cancelled the call
├── Unauthenticated      the token is missing or unknown
├── PermissionDenied     the token does not allow this call
└── Internal             a bug; the server's log has its traceback under `request_id`
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
    """The base class of all exceptions of the SDK.

    message: a description of the error. reason: a constant for programs, such as "MODEL_NOT_FOUND", or "". request_id:
    identifies the request in the server's log; "" if the error did not come from a server.
    """

    def __init__(self, message: str, *, reason: str = "", request_id: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.request_id = request_id


class InvalidArgument(SeqloomError):
    """An argument is wrong, or exceeds the server's limits."""

    def __init__(self, message: str, *, reason: str = "INVALID_FIELD", request_id: str = "") -> None:
        super().__init__(message, reason=reason, request_id=request_id)


class NotFound(SeqloomError):
    """The model, run or checkpoint does not exist."""


class AlreadyExists(SeqloomError):
    """A model of this name exists."""


class VersionMismatch(SeqloomError):
    """The required version of the weights is not served."""


class Overloaded(SeqloomError):
    """The server is overloaded and has done nothing, or was not asked, as it refuses many calls like this one.

    A server that has much to do also refuses a call that would end after its timeout. retry_after: seconds after which
    a repeat may succeed. sent: whether the server was asked; if not, retry_after is what it told another call.
    """

    def __init__(
        self, message: str, *, reason: str = "", request_id: str = "", retry_after: float = 0.0, sent: bool = True
    ) -> None:
        super().__init__(message, reason=reason, request_id=request_id)
        self.retry_after = retry_after
        self.sent = sent


class Unavailable(SeqloomError):
    """The server cannot be reached or is shutting down, or the connection broke during the call."""


class StreamLost(SeqloomError):
    """An open stream's connection or server was lost, and it is not resumed: outputs and hidden state are lost.

    It was opened with resume=False, or could not be resumed in time, or its weights are gone (reason "WEIGHTS_GONE").
    """


class DeadlineExceeded(SeqloomError):
    """The timeout passed before the call ended."""


class Cancelled(SeqloomError):
    """The client was closed, or the server cancelled the call."""


class Unauthenticated(SeqloomError):
    """The token is missing, or the server does not know it."""


class PermissionDenied(SeqloomError):
    """The token does not allow this call."""


class Internal(SeqloomError):
    """A bug, or a response that does not follow the protocol."""


# The codes of a stream that was reset, or that ended while a message was written; with a request id the server sent it.
_BROKEN = (grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED)
_CLOCK_TOLERANCE = 0.01  # seconds by which gRPC may end a call before its deadline

_BY_CODE: dict[int, type[SeqloomError]] = {
    code_pb2.INVALID_ARGUMENT: InvalidArgument,
    code_pb2.FAILED_PRECONDITION: InvalidArgument,
    code_pb2.OUT_OF_RANGE: InvalidArgument,
    code_pb2.RESOURCE_EXHAUSTED: InvalidArgument,  # a size limit; with RetryInfo it is Overloaded
    code_pb2.NOT_FOUND: NotFound,
    code_pb2.ALREADY_EXISTS: AlreadyExists,
    code_pb2.UNAVAILABLE: Unavailable,
    code_pb2.DEADLINE_EXCEEDED: DeadlineExceeded,
    code_pb2.CANCELLED: Cancelled,
    code_pb2.UNAUTHENTICATED: Unauthenticated,
    code_pb2.PERMISSION_DENIED: PermissionDenied,
}

_BY_REASON: dict[str, type[SeqloomError]] = {"VERSION_MISMATCH": VersionMismatch, "WEIGHTS_GONE": StreamLost}


def from_status(status: status_pb2.Status) -> SeqloomError:
    """Converts a google.rpc.Status, with its ErrorInfo and RetryInfo, to an exception."""
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
    message = status.message or "the server sent no error message"
    if status.code == code_pb2.RESOURCE_EXHAUSTED and retry_after is not None:
        return Overloaded(message, reason=reason, request_id=request_id, retry_after=retry_after)
    kind = _BY_REASON.get(reason) or _BY_CODE.get(status.code, Internal)
    return kind(message, reason=reason, request_id=request_id)


def from_rpc(error: grpc.aio.AioRpcError) -> SeqloomError:
    """Converts the error of a failed call to an exception, by its status details if it has any, else by its code."""
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # typed for blocking calls only
    except (ValueError, DecodeError):  # the details contradict the code, or are not a Status
        status = None
    if status is None:
        code = error.code()
        number = code.value[0] if code is not None else code_pb2.UNKNOWN
        status = status_pb2.Status(code=number, message=error.details() or "")
    found = with_argument_names(from_status(status), "xs")
    found.reason = found.reason or code_pb2.Code.Name(status.code)
    return found


def from_transport(error: BaseException, deadline: float = math.inf) -> SeqloomError | None:
    """Converts any error that gRPC raises to an exception; returns None if the error did not come from gRPC, such as
    the cancellation of the task that waits.

    deadline: of the call, on time.monotonic's clock. If a call ends while its request is being written, a grpc.aio
    client (grpcio 1.85.3, issue 36066) loses the status, and raises INTERNAL, an InvalidStateError, or an
    asyncio.CancelledError although nobody cancelled the task.
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
    if time.monotonic() >= deadline - _CLOCK_TOLERANCE:
        return DeadlineExceeded("the timeout passed during the call", reason="DEADLINE_EXCEEDED")
    return Unavailable(f"the connection to the server broke: {words}", reason="CALL_LOST")


def checked_reply(reply: T | None) -> T:
    """Returns a reply. Raises Internal for None, which gRPC returns for a message that it cannot decode."""
    if reply is None:
        raise Internal("the server sent a message that cannot be decoded", reason="MALFORMED_REPLY")
    return reply


def with_argument_names(error: SeqloomError, frames: str) -> SeqloomError:
    """Replaces protobuf fields in an error's message by the SDK's arguments. frames: the argument with the frames."""
    names = (
        ("entries.frames", frames),
        ("entries.open.output", "outputs"),
        ("entries.open.", ""),
        ("groups.open.output", "outputs"),
        ("groups.open.streams", "n"),
        ("groups.open.", ""),
        ("groups.frames", frames),
        ("groups.streams", "streams"),
        ("groups.set.state", "state"),
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
