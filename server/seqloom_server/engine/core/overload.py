"""What the engine answers where it takes no more: OVERLOADED, and after how many seconds a caller may try again.

Where the engine can tell, that is when half of what waits will have run (`Scheduler.push`); else it is one of these.
"""

from seqloom_server.errors import Reason, ServerError

HALF_A_SECOND = 0.5  # for a place in a queue
ONE_SECOND = 1.0  # for what callers hold for a while: sessions, versions of weights, a lock, unread outputs
FIVE_SECONDS = 5.0  # for a run to end
TEN_SECONDS = 10.0  # for a whole model to have moved, or for the memory that one needs


def overloaded(message: str, retry_after: float) -> ServerError:
    """Returns the error. retry_after: seconds; it travels as google.rpc.RetryInfo."""
    return ServerError(Reason.OVERLOADED, message, retry_after=retry_after)


def memory_exhausted() -> ServerError:
    """Returns the error of a batch for which there was no memory."""
    return overloaded("the server's memory is exhausted", ONE_SECOND)


def no_memory_for_the_model() -> ServerError:
    """Returns the error of a model, or a run, for whose tensors there was no memory."""
    return overloaded("the server has no memory for the model", TEN_SECONDS)
