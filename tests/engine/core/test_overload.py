"""Refusals are counted by their cause, each once, wherever the error comes by."""

from helpers.real_server import metric
from seqloom_server.engine.core.overload import count_refusal, memory_exhausted, overloaded
from seqloom_server.errors import Overload, Reason, ServerError
from seqloom_server.metrics import Metrics


def test_an_error_is_counted_once_by_its_cause():
    metrics = Metrics()
    full = overloaded("full", 1.0, Overload.QUEUE_FULL)
    for error in (full, full, overloaded("full", 1.0, Overload.QUEUE_FULL), memory_exhausted()):
        count_refusal(metrics, error)
    count_refusal(metrics, overloaded("for two", 1.0, Overload.SESSIONS), 2)
    assert metric(metrics, "rejected_total", reason="queue_full") == 2
    assert metric(metrics, "rejected_total", reason="memory") == 1
    assert metric(metrics, "rejected_total", reason="sessions") == 2


def test_what_has_no_cause_counts_as_overloaded_and_what_is_no_overload_does_not():
    metrics = Metrics()
    count_refusal(metrics, overloaded("full", 1.0))
    count_refusal(metrics, ServerError(Reason.NOT_DONE, "no memory", cause=Overload.MEMORY))
    count_refusal(metrics, ServerError(Reason.INTERNAL, "a bug"))
    assert metric(metrics, "rejected_total", reason="overloaded") == 1
    assert metric(metrics, "rejected_total") == 2
