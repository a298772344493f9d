"""Tells the metrics what the engine does: once a slice, once a session, or when they are read."""

from collections import defaultdict

from seqloom_server.engine.registry import Registry
from seqloom_server.engine.request import Member, Op, Sequence, Slice
from seqloom_server.engine.scheduler import Scheduler
from seqloom_server.metrics import Metrics


class Report:
    """The engine's side of the metrics."""

    def __init__(self, metrics: Metrics, scheduler: Scheduler, registry: Registry, device: str) -> None:
        self._metrics = metrics
        self._padded = device == "cuda"
        for op in Op:
            metrics.queue_items.labels(op=op).set_function(lambda op=op: scheduler.items[op])
        metrics.state_bytes.set_function(lambda: sum(weights.state_bytes for weights in registry.alive()))
        metrics.device_memory_bytes.set_function(registry.device_bytes)
        registry.on_serve(lambda name, version: metrics.weights_version.labels(model=name).set(version))

    def session_opened(self, sequence: Sequence) -> None:
        self._metrics.active_streams.labels(model=sequence.weights.model).inc()

    def session_closed(self, sequence: Sequence) -> None:
        self._metrics.active_streams.labels(model=sequence.weights.model).dec()

    def rejected(self, reason: str) -> None:
        self._metrics.rejected_total.labels(reason=reason).inc()

    def cancelled(self, stage: str) -> None:
        self._metrics.cancelled_total.labels(stage=stage).inc()

    def ran(self, piece: Slice, seconds: float) -> None:
        """Observes a slice, each class of work in it for itself; on the CPU no padding is computed."""
        metrics, model = self._metrics, piece.weights.model
        by_op: dict[Op, list[Member]] = defaultdict(list)
        for member in piece.members:
            if member.waited is not None:
                metrics.queue_duration_seconds.labels(op=member.sequence.op, model=model).observe(member.waited)
            if member.steps:
                by_op[member.sequence.op].append(member)
        for op, members in by_op.items():
            steps = sum(member.steps for member in members)
            metrics.batch_sequences.labels(op=op, model=model).observe(len(members))
            metrics.batch_steps.labels(op=op, model=model).observe(steps)
            metrics.steps_total.labels(op=op, model=model).inc(steps)
            metrics.compute_duration_seconds.labels(op=op, model=model).observe(seconds)
            padding = piece.steps * len(members) - steps if self._padded else 0
            metrics.padded_steps_total.labels(op=op, model=model).inc(padding)
