"""Everything the server can answer a caller with instead of a result: one error class and the table of its reasons.

This floor knows no gRPC; `rpc.status` gives each reason its status code.
"""

import enum


class Reason(enum.StrEnum):
    """Why a request is not answered; travels to the caller as the reason of google.rpc.ErrorInfo."""

    INVALID_FIELD = "INVALID_FIELD"  # a field of the request is wrong in itself
    OVER_LIMIT = "OVER_LIMIT"  # longer or wider than this server ever takes
    MALFORMED_MESSAGE = "MALFORMED_MESSAGE"  # bytes that are no message of ours
    CUT_OFF = "CUT_OFF"  # a request in parts ended before its last one; nothing was done
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    MODEL_EXISTS = "MODEL_EXISTS"
    MODEL_BROKEN = "MODEL_BROKEN"  # a model folder that cannot be loaded
    SESSION_NOT_OPEN = "SESSION_NOT_OPEN"  # frames, reset or end for a session that is not open
    SESSION_EXISTS = "SESSION_EXISTS"  # opened twice
    SESSION_ENDED = "SESSION_ENDED"  # something after end
    SESSION_IDLE = "SESSION_IDLE"  # nothing came for too long
    WINDOW_EXCEEDED = "WINDOW_EXCEEDED"  # more unacknowledged steps than the session's window
    OVERFLOW = "OVERFLOW"  # a loss, a gradient, or what a step makes, would be no finite number
    RUN_NOT_FOUND = "RUN_NOT_FOUND"
    RUN_BROKEN = "RUN_BROKEN"  # a run folder that cannot be loaded
    RUN_WAITS = "RUN_WAITS"  # for earlier calls, which were lost with a server or never came
    NOTHING_ACCUMULATED = "NOTHING_ACCUMULATED"  # a step without a gradient
    STEP_MISMATCH = "STEP_MISMATCH"  # the step expected is not the run's next
    NOT_DONE = "NOT_DONE"  # a call on a run had begun, and there was no room for it: nothing changed
    CALL_CHANGED = "CALL_CHANGED"  # a call's number was used for another content before
    CALL_FORGOTTEN = "CALL_FORGOTTEN"  # a call was done, and its reply acknowledged
    CHECKPOINT_NOT_FOUND = "CHECKPOINT_NOT_FOUND"
    CHECKPOINT_BROKEN = "CHECKPOINT_BROKEN"  # a checkpoint that cannot be loaded
    STORAGE_FAILED = "STORAGE_FAILED"  # a folder of the server's cannot be written or read: a full disk, no rights
    VERSION_MISMATCH = "VERSION_MISMATCH"  # the weights version demanded is not the one served
    OVERLOADED = "OVERLOADED"  # more than the server takes now; nothing was done
    DEADLINE_EXCEEDED = (
        "DEADLINE_EXCEEDED"  # passed while queued, or a part of an import did not come; no device time was spent
    )
    CANCELLED = "CANCELLED"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    ENGINE_DEAD = "ENGINE_DEAD"  # the device thread died
    INTERNAL = "INTERNAL"  # a bug of ours


class ServerError(Exception):
    """A refusal or failure that the caller is told of.

    field: path of the request's field that is at fault, or "".
    retry_after: seconds after which a repeat may succeed, or None where a repeat is no use.
    """

    def __init__(self, reason: Reason, message: str, *, field: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.retry_after = retry_after


def invalid(field: str, message: str) -> ServerError:
    """The error of a request field that is wrong in itself: `message` says what was sent and what is expected."""
    return ServerError(Reason.INVALID_FIELD, f"{field}: {message}", field=field)
