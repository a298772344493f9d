"""The errors that callers see: one exception class and the table of its reasons.

This module knows no gRPC; `rpc/calls/status.py` maps each reason to its status code.
"""

import enum


class Reason(enum.StrEnum):
    """Why a request failed; sent to the caller as the reason of google.rpc.ErrorInfo."""

    INVALID_FIELD = "INVALID_FIELD"  # a field of the request is invalid whatever the server's state
    OVER_LIMIT = "OVER_LIMIT"  # larger than this server ever accepts
    MALFORMED_MESSAGE = "MALFORMED_MESSAGE"  # bytes that are not the method's protobuf message
    CUT_OFF = "CUT_OFF"  # a request in parts ended before its last part; nothing was done
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    MODEL_EXISTS = "MODEL_EXISTS"
    MODEL_BROKEN = "MODEL_BROKEN"  # a model folder that cannot be loaded
    SESSION_NOT_OPEN = "SESSION_NOT_OPEN"  # frames, reset or end for a session that is not open
    SESSION_EXISTS = "SESSION_EXISTS"  # opened twice
    SESSION_ENDED = "SESSION_ENDED"  # frames, reset or end after the session's end
    SESSION_IDLE = "SESSION_IDLE"  # no frames arrived for too long
    WINDOW_EXCEEDED = "WINDOW_EXCEEDED"  # more unacknowledged steps than the session's window
    OVERFLOW = "OVERFLOW"  # a loss, a gradient or a weight would not be finite
    RUN_NOT_FOUND = "RUN_NOT_FOUND"
    RUN_BROKEN = "RUN_BROKEN"  # a run folder that cannot be loaded
    RUN_WAITS = "RUN_WAITS"  # for earlier calls, which were lost with a server or never arrived
    NOTHING_ACCUMULATED = "NOTHING_ACCUMULATED"  # an optimizer step without a gradient
    STEP_MISMATCH = "STEP_MISMATCH"  # the step expected is not the run's next
    NOT_DONE = "NOT_DONE"  # a call on a run began and was refused as overloaded: nothing changed
    CALL_CHANGED = "CALL_CHANGED"  # a call's number was used before with another content
    CALL_FORGOTTEN = "CALL_FORGOTTEN"  # a call was done, and its reply acknowledged
    CHECKPOINT_NOT_FOUND = "CHECKPOINT_NOT_FOUND"
    CHECKPOINT_BROKEN = "CHECKPOINT_BROKEN"  # a checkpoint that cannot be loaded
    STORAGE_FAILED = "STORAGE_FAILED"  # the server cannot read or write a folder: disk full, permission denied
    VERSION_MISMATCH = "VERSION_MISMATCH"  # the weights version requested is not the one served
    WEIGHTS_GONE = "WEIGHTS_GONE"  # the weights of a stream that is resumed are neither served nor in use
    OVERLOADED = "OVERLOADED"  # more than the server accepts now; nothing was done
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"  # cannot be met, or no next part arrived; no more device time is spent
    CANCELLED = "CANCELLED"
    NO_TOKEN = "NO_TOKEN"  # the server asks for a token, and the call has none
    WRONG_TOKEN = "WRONG_TOKEN"
    SCOPE_MISSING = "SCOPE_MISSING"  # the token does not permit the method
    TOKEN_REMOVED = "TOKEN_REMOVED"  # while a call with it was open
    SHUTTING_DOWN = "SHUTTING_DOWN"
    ENGINE_DEAD = "ENGINE_DEAD"  # the device thread died
    INTERNAL = "INTERNAL"  # a bug in the server


class Overload(enum.StrEnum):
    """What the server has no room for; the label of `seqloom_rejected_total`."""

    QUEUE_FULL = "queue_full"  # or a caller's part of it, as of the following bounds
    TOO_LATE = "too_late"  # the answer would come after its deadline, or the work wait for too long
    CALLS = "calls"  # open at once
    SESSIONS = "sessions"
    LIVE_LOAD = "live_load"  # of streams that have a rate
    UNREAD_OUTPUTS = "unread_outputs"
    MEMORY = "memory"  # of the machine or of its device
    MODELS = "models"  # imports, exports, versions in use, the lock of their folder
    RUNS = "runs"  # and the calls on one that wait for earlier ones
    TOKEN = "token"  # a limit of the caller's token, or calls that wait since wrong tokens came from their address


class ServerError(Exception):
    """An error that is sent to the caller.

    field: path of the request's invalid field, or "".
    retry_after: seconds after which a repeat may succeed, or None if a repeat cannot.
    cause: what there is no room for, of an error because of load.
    counted: whether it is in the metrics; see `count_refusal` of engine/core/overload.py.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        field: str = "",
        retry_after: float | None = None,
        cause: Overload | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.retry_after = retry_after
        self.cause = cause
        self.counted = False


def without_frames(error: ServerError) -> ServerError:
    """Returns the error without the frames that it came by, whose variables may hold a call's arrays or its message.

    For an error that is kept, and for one that has been sent, as it may be the same one.
    """
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


def invalid(field: str, message: str) -> ServerError:
    """Returns INVALID_FIELD for a field of the request; `message` says what was sent and what is expected."""
    return ServerError(Reason.INVALID_FIELD, f"{field}: {message}", field=field)


def over_limit(field: str, message: str) -> ServerError:
    """Returns OVER_LIMIT for a field that is larger than this server ever accepts."""
    return ServerError(Reason.OVER_LIMIT, f"{field}: {message}", field=field)
