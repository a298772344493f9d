"""OVERLOADED errors, and the seconds after which a caller may try again.

For a full queue that is when half of the queue will have run (`Scheduler.push`), else one of these constants.
"""

from seqloom_server.errors import Reason, ServerError

HALF_A_SECOND = 0.5  # for a place in a queue
ONE_SECOND = 1.0  # for what callers hold for a while: sessions, versions of weights, a lock, unread outputs
FIVE_SECONDS = 5.0  # for a run to end
TEN_SECONDS = 10.0  # for a whole model to be transferred, or for the memory of one


def overloaded(message: str, retry_after: float) -> ServerError:
    """Returns OVERLOADED. retry_after: seconds, sent as google.rpc.RetryInfo."""
    return ServerError(Reason.OVERLOADED, message, retry_after=retry_after)


def memory_exhausted() -> ServerError:
    """Returns the error of a batch that ran out of memory."""
    return overloaded("the server is out of memory for the batch", ONE_SECOND)


def model_memory_exhausted() -> ServerError:
    """Returns the error of a model or a run whose tensors ran out of memory."""
    return overloaded("the server is out of memory for the model", TEN_SECONDS)
