"""Maps each error reason to its gRPC status code, and builds the rich status (google.rpc.Status) that is sent.

A status stays under 4 KB: messages quote what a caller sent, and gRPC bounds the size of metadata.
"""

from google.protobuf.any_pb2 import Any
from google.rpc import code_pb2, error_details_pb2, status_pb2

from seqloom_server.engine.core.overload import ONE_SECOND
from seqloom_server.errors import Reason, ServerError

DOMAIN = "seqloom"

_MAX_MESSAGE_BYTES = 800  # sent three times: as gRPC's text, in the status, and as a field violation
_MAX_FIELD_BYTES = 200

CODES: dict[Reason, int] = {
    Reason.INVALID_FIELD: code_pb2.INVALID_ARGUMENT,
    Reason.OVER_LIMIT: code_pb2.INVALID_ARGUMENT,
    Reason.MALFORMED_MESSAGE: code_pb2.INVALID_ARGUMENT,
    Reason.CUT_OFF: code_pb2.CANCELLED,
    Reason.MODEL_NOT_FOUND: code_pb2.NOT_FOUND,
    Reason.MODEL_EXISTS: code_pb2.ALREADY_EXISTS,
    Reason.MODEL_BROKEN: code_pb2.FAILED_PRECONDITION,
    Reason.SESSION_NOT_OPEN: code_pb2.FAILED_PRECONDITION,
    Reason.SESSION_EXISTS: code_pb2.FAILED_PRECONDITION,
    Reason.SESSION_ENDED: code_pb2.FAILED_PRECONDITION,
    Reason.SESSION_IDLE: code_pb2.DEADLINE_EXCEEDED,
    Reason.WINDOW_EXCEEDED: code_pb2.FAILED_PRECONDITION,
    Reason.OVERFLOW: code_pb2.FAILED_PRECONDITION,
    Reason.RUN_NOT_FOUND: code_pb2.NOT_FOUND,
    Reason.RUN_BROKEN: code_pb2.FAILED_PRECONDITION,
    Reason.RUN_WAITS: code_pb2.UNAVAILABLE,
    Reason.NOTHING_ACCUMULATED: code_pb2.FAILED_PRECONDITION,
    Reason.STEP_MISMATCH: code_pb2.FAILED_PRECONDITION,
    Reason.NOT_DONE: code_pb2.ABORTED,
    Reason.CALL_CHANGED: code_pb2.INVALID_ARGUMENT,
    Reason.CALL_FORGOTTEN: code_pb2.FAILED_PRECONDITION,
    Reason.CHECKPOINT_NOT_FOUND: code_pb2.NOT_FOUND,
    Reason.CHECKPOINT_BROKEN: code_pb2.FAILED_PRECONDITION,
    Reason.STORAGE_FAILED: code_pb2.INTERNAL,  # the caller cannot mend it
    Reason.VERSION_MISMATCH: code_pb2.FAILED_PRECONDITION,
    Reason.WEIGHTS_GONE: code_pb2.FAILED_PRECONDITION,
    Reason.OVERLOADED: code_pb2.RESOURCE_EXHAUSTED,
    Reason.DEADLINE_EXCEEDED: code_pb2.DEADLINE_EXCEEDED,
    Reason.CANCELLED: code_pb2.CANCELLED,
    Reason.NO_TOKEN: code_pb2.UNAUTHENTICATED,
    Reason.WRONG_TOKEN: code_pb2.UNAUTHENTICATED,
    Reason.SCOPE_MISSING: code_pb2.PERMISSION_DENIED,
    Reason.TOKEN_REMOVED: code_pb2.PERMISSION_DENIED,
    Reason.SHUTTING_DOWN: code_pb2.UNAVAILABLE,
    Reason.ENGINE_DEAD: code_pb2.UNAVAILABLE,
    Reason.INTERNAL: code_pb2.INTERNAL,
}


def status_of(error: ServerError, request_id: str) -> status_pb2.Status:
    """Returns the status of an error: with ErrorInfo, RetryInfo if a repeat may succeed, BadRequest for a field."""
    message = _cut(error.message, _MAX_MESSAGE_BYTES)
    status = status_pb2.Status(code=CODES[error.reason], message=message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata={"request_id": request_id})
    _attach(status, info)
    retry_after = error.retry_after
    if retry_after is None and error.reason is Reason.OVERLOADED:
        retry_after = ONE_SECOND
    if retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(max(0, round(retry_after * 1e9)))
        _attach(status, retry)
    if error.field:
        violations = error_details_pb2.BadRequest()
        violations.field_violations.add(field=_cut(error.field, _MAX_FIELD_BYTES), description=message)
        _attach(status, violations)
    return status


def _attach(
    status: status_pb2.Status,
    detail: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo | error_details_pb2.BadRequest,
) -> None:
    packed = Any()
    packed.Pack(detail)
    status.details.append(packed)


def _cut(text: str, most: int) -> str:
    """Cuts a text to at most `most` bytes of UTF-8; lone surrogates become "?"."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= most:
        return encoded.decode()
    return encoded[: most - 3].decode("utf-8", "ignore") + "..."
