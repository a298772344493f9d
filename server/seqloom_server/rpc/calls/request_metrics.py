"""Counts the requests that ended, by method, model and code: unary calls, streams, and the sessions within them."""

from typing import Any

from seqloom_server.metrics import Metrics


class RequestMetrics:
    """The request metrics; a watcher of the registry, so that there are never more series than models have."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._models = {""}
        self._children: dict[tuple[str, str, str], tuple[Any, Any]] = {}

    def count(self, method: str, model: str, code: str, seconds: float | None) -> None:
        """Counts one request. code: a gRPC code's name. model: "" where it has none. seconds: None for one refused."""
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

    def serving(self, name: str, version: int) -> None:
        self._models.add(name)

    def unloaded(self, name: str) -> None:
        """Its open sessions are still to end."""

    def gone(self, name: str) -> None:
        """Takes the model's series away."""
        self._models.remove(name)
        keys = [key for key in self._children if key[1] == name]
        for key in keys:
            del self._children[key]
            self._metrics.requests_total.remove(*key)
        for method in {method for method, _, _ in keys}:
            self._metrics.request_duration_seconds.remove(method, name)
