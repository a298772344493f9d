"""The server's Prometheus metrics: every name, help text and label, on a registry of its own.

No label value comes from a request: methods are those served, models those loaded, codes and reasons those of tables.
"""

import platform
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from seqloom._version import __version__

# From a small network's slice to the longest wait of a recording in the queue.
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


def _powers_of_two(most: int) -> list[float]:
    """Returns 1, 2, 4 ... and `most` itself, the size of a full batch."""
    return sorted({*(float(1 << n) for n in range(most.bit_length())), float(most)})


class Metrics:
    """The metrics of one server; prefix `seqloom_`, base units.

    max_batch_sequences, max_batch_steps: the largest slice, and so the top buckets of the histograms of its size.
    """

    def __init__(self, max_batch_sequences: int = 256, max_batch_steps: int = 32_768) -> None:
        self.registry = CollectorRegistry()
        slices = ["op", "model"]
        self.requests_total = self._counter("requests_total", "Calls completed", ["method", "model", "code"])
        self.request_duration_seconds = self._histogram(
            "request_duration_seconds", "From a call's first byte to its end", _SECONDS, ["method", "model"]
        )
        self.queue_duration_seconds = self._histogram(
            "queue_duration_seconds", "Time that work waited for the device", _SECONDS, slices
        )
        self.compute_duration_seconds = self._histogram(
            "compute_duration_seconds", "Time that a slice or a training batch took on the device", _SECONDS, slices
        )
        self.batch_sequences = self._histogram(
            "batch_sequences", "Sequences in a slice or a training batch", _powers_of_two(max_batch_sequences), slices
        )
        self.batch_steps = self._histogram(
            "batch_steps", "Useful steps in a slice or a training batch", _powers_of_two(max_batch_steps), slices
        )
        self.steps_total = self._counter("steps_total", "Useful steps computed: the throughput", slices)
        self.padded_steps_total = self._counter("padded_steps_total", "Steps computed for padding", slices)
        self.wasted_steps_total = self._counter(
            "wasted_steps_total", "Steps computed for answers that nobody got", slices
        )
        self.device_busy_seconds_total = self._counter(
            "device_busy_seconds_total", "Time that the device spent computing", []
        )
        self.active_streams = self._gauge("active_streams", "Open live sessions", ["model"])
        self.queue_items = self._gauge("queue_items", "Sequences waiting for the device", ["op"])
        self.rejected_total = self._counter("rejected_total", "Work refused because of load", ["reason"])
        self.refusal_duration_seconds = self._histogram(
            "refusal_duration_seconds",
            "From a message, or a call's first byte, to its refusal because of load",
            _SECONDS,
            [],
        )
        self.admission_predicted_seconds = self._histogram(
            "admission_predicted_seconds",
            "From the admission of whole sequences to their end, as predicted: of one in each slice",
            _SECONDS,
            ["model"],
        )
        self.admission_actual_seconds = self._histogram(
            "admission_actual_seconds", "From the admission of the same sequences to their end", _SECONDS, ["model"]
        )
        self.cancelled_total = self._counter("cancelled_total", "Sequences that ended without a result", ["stage"])
        self.weights_version = self._gauge("weights_version", "Version of the weights served", ["model"])
        self.optimizer_steps_total = self._counter(
            "optimizer_steps_total", "Optimizer steps applied by runs", ["model"]
        )
        self.deduplicated_calls_total = self._counter(
            "deduplicated_calls_total", "Repeated calls on runs, which changed nothing", ["model"]
        )
        self.unauthorized_total = self._counter(
            "unauthorized_total", "Calls refused for want of a token that permits them", ["reason"]
        )
        self.reload_failures_total = self._counter(
            "reload_failures_total", "Changed files that could not be used: what they said before stays", ["files"]
        )
        self.state_bytes = self._gauge("state_bytes", "Memory of hidden states on the device")
        self.device_memory_bytes = self._gauge(
            "device_memory_bytes", "Memory of weights, hidden states and runs on the device"
        )
        self.connections_closed_total = self._counter(
            "connections_closed_total", "Connections closed since their address had too many", []
        )
        self.run_save_failures_total = self._counter(
            "run_save_failures_total", "Checkpoints of runs that could not be written", []
        )
        self.serving = self._gauge("serving", "Whether the server takes new work: 1 or 0")
        self.build_info = Info("seqloom_build", "What runs here", registry=self.registry)
        self.tell_build()

    def tell_build(self, *, torch: str = "", device: str = "", precisions: Iterable[str] = ()) -> None:
        """Sets the labels of seqloom_build_info. precisions: those of the served models, "full" and others."""
        self.build_info.info(
            {
                "version": __version__,
                "python": platform.python_version(),
                "torch": torch,
                "device": device,
                "precision": ",".join(sorted({*precisions})),
            }
        )

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(f"seqloom_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: list[str] | None = None) -> Gauge:
        return Gauge(f"seqloom_{name}", text, labels or [], registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: "tuple[float, ...] | list[float]", labels: list[str]
    ) -> Histogram:
        return Histogram(f"seqloom_{name}", text, labels, buckets=buckets, registry=self.registry)
