"""Counts completed requests by method, model and code: unary calls, streams, and the sessions of streams.

And what was refused because of load: each call that ends with such an error comes by here.
"""

from prometheus_client import Counter, Histogram

from seqloom_server.engine.core.overload import count_refusal
from seqloom_server.errors import Reason, ServerError
from seqloom_server.metrics import Metrics


class RequestMetrics:
    """The metrics of requests; watches the registry of models, to remove the series of models that are gone."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._models = {""}
        self._children: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}

    def count(self, method: str, model: str, code: str, seconds: float | None) -> None:
        """Counts one request. code: a gRPC code's name. model: "" for none. seconds: None for a refused session."""
        key = (method, model if model in self._models else "", code)
        children = self._children.get(key)
        if children is None:  # looked up once, since labels() costs more than the counting
            children = self._children[key] = (
                self._metrics.requests_total.labels(*key),
                self._metrics.request_duration_seconds.labels(*key[:2]),
            )
        children[0].inc()
        if seconds is not None:
            children[1].observe(seconds)

    def rejected(self, error: ServerError, seconds: float | None = None) -> None:
        """Counts what was refused because of load, unless the error has been counted.

        seconds: from when the message was read, or from the call's first byte, to the refusal.
        """
        count_refusal(self._metrics, error)
        if seconds is not None and error.reason is Reason.OVERLOADED:
            self._metrics.refusal_duration_seconds.observe(seconds)

    def serving(self, name: str, version: int) -> None:
        self._models.add(name)

    def unloaded(self, name: str) -> None:
        """Does nothing: sessions of the model may still be open."""

    def gone(self, name: str) -> None:
        """Removes the model's series."""
        self._models.remove(name)
        keys = [key for key in self._children if key[1] == name]
        for key in keys:
            del self._children[key]
            self._metrics.requests_total.remove(*key)
        for method in {method for method, _, _ in keys}:
            self._metrics.request_duration_seconds.remove(method, name)
