"""OVERLOADED errors, the seconds after which a caller may try again, and their count in the metrics.

For work that would be late that is by how much, for a full queue when half of it will have run (`QueueBounds.check`),
else one of these constants.
"""

from seqloom_server.errors import Overload, Reason, ServerError
from seqloom_server.metrics import Metrics

HALF_A_SECOND = 0.5  # for a place in a queue
ONE_SECOND = 1.0  # for what callers hold for a while: sessions, versions of weights, a lock, unread outputs
FIVE_SECONDS = 5.0  # for a run to end
TEN_SECONDS = 10.0  # for a whole model to be transferred, or for the memory of one

_NO_CAUSE = "overloaded"


def overloaded(message: str, retry_after: float, cause: Overload | None = None) -> ServerError:
    """Returns OVERLOADED. retry_after: seconds, sent as google.rpc.RetryInfo. cause: counted in the metrics."""
    return ServerError(Reason.OVERLOADED, message, retry_after=retry_after, cause=cause)


def memory_exhausted(what: str = "the batch") -> ServerError:
    """Returns the error of work that ran out of memory."""
    return overloaded(f"the server is out of memory for {what}", ONE_SECOND, Overload.MEMORY)


def model_memory_exhausted() -> ServerError:
    """Returns the error of a model or a run whose tensors ran out of memory."""
    return overloaded("the server is out of memory for the model", TEN_SECONDS, Overload.MEMORY)


def count_refusal(metrics: Metrics, error: ServerError, times: int = 1) -> None:
    """Counts an error in `rejected_total` by its cause, if load is its reason.

    The same error is counted once, wherever it comes by: where the work is refused, where the call ends, and where a
    repeat gets it again. times: how many pieces of work it refuses.
    """
    if (error.reason is Reason.OVERLOADED or error.cause is not None) and not error.counted:
        error.counted = True
        metrics.rejected_total.labels(reason=error.cause or _NO_CAUSE).inc(times)
