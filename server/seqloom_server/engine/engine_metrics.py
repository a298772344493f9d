"""Records the engine's metrics: once for each slice, training batch and session, or when they are scraped."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from prometheus_client import Counter, Gauge, Histogram

from seqloom_server.engine.core.overload import count_refusal
from seqloom_server.engine.core.sequence import Op, Sequence, Slice
from seqloom_server.engine.core.training_job import TrainingBatch
from seqloom_server.engine.models.registry import Registry
from seqloom_server.engine.scheduling.scheduler import Scheduler
from seqloom_server.errors import ServerError
from seqloom_server.metrics import Metrics


class _WorkMetrics:
    """The metrics of one class of work on one model; kept, since labels() is slower than counting."""

    def __init__(self, metrics: Metrics, op: Op, model: str) -> None:
        self.queue_seconds: Histogram = metrics.queue_duration_seconds.labels(op=op, model=model)
        self.compute_seconds: Histogram = metrics.compute_duration_seconds.labels(op=op, model=model)
        self.sequences: Histogram = metrics.batch_sequences.labels(op=op, model=model)
        self.steps: Histogram = metrics.batch_steps.labels(op=op, model=model)
        self.steps_total: Counter = metrics.steps_total.labels(op=op, model=model)
        self.padded_total: Counter = metrics.padded_steps_total.labels(op=op, model=model)
        self.wasted_total: Counter = metrics.wasted_steps_total.labels(op=op, model=model)


@dataclass(slots=True)
class _ModelMetrics:
    """The metrics of one model, from when it is first served until it is gone."""

    work: dict[Op, _WorkMetrics]
    active_streams: Gauge
    optimizer_steps: Counter
    deduplicated_calls: Counter
    predicted: Histogram
    took: Histogram


class EngineMetrics:
    """Records metrics of sessions on the event loop and of slices on the device thread; watches the registry."""

    def __init__(
        self,
        metrics: Metrics,
        scheduler: Scheduler,
        registry: Registry,
        device: str,
        device_bytes: Callable[[], float],
    ) -> None:
        self._metrics = metrics
        self._registry = registry
        self._device = device
        self._models: dict[str, _ModelMetrics] = {}
        for op in Op:
            metrics.queue_items.labels(op=op).set_function(functools.partial(scheduler.items.__getitem__, op))
        metrics.state_bytes.set_function(lambda: sum(weights.state_bytes for weights in registry.alive()))
        metrics.device_memory_bytes.set_function(device_bytes)
        registry.watchers.append(self)
        self._tell_build()

    def _tell_build(self) -> None:
        precisions = [model.spec.precision for model in self._registry.models()]
        self._metrics.tell_build(torch=torch.__version__, device=self._device, precisions=precisions)

    def serving(self, name: str, version: int) -> None:
        self._tell_build()
        self._metrics.weights_version.labels(model=name).set(version)
        if name not in self._models:
            self._models[name] = _ModelMetrics(
                {op: _WorkMetrics(self._metrics, op, name) for op in Op},
                self._metrics.active_streams.labels(model=name),
                self._metrics.optimizer_steps_total.labels(model=name),
                self._metrics.deduplicated_calls_total.labels(model=name),
                self._metrics.admission_predicted_seconds.labels(model=name),
                self._metrics.admission_actual_seconds.labels(model=name),
            )

    def unloaded(self, name: str) -> None:
        self._tell_build()
        self._metrics.weights_version.remove(name)

    def gone(self, name: str) -> None:
        """Removes the model's series."""
        del self._models[name]
        metrics = self._metrics
        metrics.active_streams.remove(name)
        metrics.optimizer_steps_total.remove(name)
        metrics.deduplicated_calls_total.remove(name)
        metrics.admission_predicted_seconds.remove(name)
        metrics.admission_actual_seconds.remove(name)
        for metric in (
            metrics.queue_duration_seconds,
            metrics.compute_duration_seconds,
            metrics.batch_sequences,
            metrics.batch_steps,
            metrics.steps_total,
            metrics.padded_steps_total,
            metrics.wasted_steps_total,
        ):
            for op in Op:
                metric.remove(op, name)

    def session_opened(self, sequence: Sequence) -> None:
        self._models[sequence.weights.model].active_streams.inc(sequence.width)

    def session_closed(self, sequence: Sequence) -> None:
        self._models[sequence.weights.model].active_streams.dec(sequence.width)

    def rejected(self, error: ServerError, times: int = 1) -> None:
        """Counts what was refused because of load; the same error is counted once."""
        count_refusal(self._metrics, error, times)

    def wasted(self, op: Op, model: str, steps: int) -> None:
        """Counts steps that were computed for callers who had gone."""
        if model in self._models:
            self._models[model].work[op].wasted_total.inc(steps)

    def answered(self, sequence: Sequence, now: float) -> None:
        """Records what was predicted for a whole sequence that has ended, and what it took."""
        model = self._models.get(sequence.weights.model)
        if model is not None and sequence.admitted is not None:
            model.predicted.observe(sequence.predicted)
            model.took.observe(now - sequence.admitted)

    def cancelled(self, stage: str) -> None:
        self._metrics.cancelled_total.labels(stage=stage).inc()

    def busy(self, seconds: float) -> None:
        """Counts the device time of a slice or of a piece of training."""
        self._metrics.device_busy_seconds_total.inc(seconds)

    def trained(self, batch: TrainingBatch) -> None:
        """Records a training batch that has run."""
        model = self._models.get(batch.weights.model)
        if model is None or not batch.calls:
            return
        work = model.work[Op.TRAIN]
        for job in batch.calls:
            work.queue_seconds.observe(job.queue_seconds)
        work.compute_seconds.observe(batch.seconds)
        work.sequences.observe(sum(len(call.examples) for call in batch.calls))
        steps = sum(call.steps for call in batch.calls)
        work.steps.observe(steps)
        work.steps_total.inc(steps)

    def stepped(self, model: str) -> None:
        """Counts an optimizer step of a run of the model."""
        if model in self._models:
            self._models[model].optimizer_steps.inc()

    def deduplicated(self, model: str) -> None:
        """Counts a repeated call on a run of the model."""
        if model in self._models:
            self._models[model].deduplicated_calls.inc()

    def run_not_saved(self) -> None:
        """Counts a checkpoint of a run that could not be written."""
        self._metrics.run_save_failures_total.inc()

    def ran(self, slice_: Slice, seconds: float) -> None:
        """Records a slice, separately for each class of work in it."""
        model = self._models.get(slice_.weights.model)
        if model is None:  # its sequences were cancelled while they ran, and the model was unloaded
            return
        for op in {member.sequence.op for member in slice_.members}:
            work = model.work[op]
            members = [member for member in slice_.members if member.sequence.op is op]
            for member in members:
                if member.waited is not None:
                    work.queue_seconds.observe(member.waited)
            cells = sum([member.cells for member in members])
            if cells:
                work.compute_seconds.observe(seconds)
                work.sequences.observe(sum([member.width for member in members if member.steps]))
                work.steps.observe(cells)
                work.steps_total.inc(cells)
                work.padded_total.inc(slice_.padded * cells / slice_.cells)
