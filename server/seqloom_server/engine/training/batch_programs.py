"""Training batches as programs for the device thread: generators that do a bounded piece of work at a time.

Where they stop is a pure function of shapes and settings, never of a clock or of load, so that a run repeats exactly.
Their outcomes are NumPy arrays.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seqloom_server.engine.core.overload import memory_exhausted
from seqloom_server.engine.core.training_job import Job, Program, Task, TrainingBatch, TrainingCall, batch_failed
from seqloom_server.engine.training.run_weights import RunWeights
from seqloom_server.errors import Reason, ServerError
from seqloom_server.memory import is_memory_short
from seqloom_server.nn.gradients.batch_gradients import gradients
from seqloom_server.nn.gradients.call_share import CallGradients
from seqloom_server.nn.spec import GATES, ModelSpec

log = logging.getLogger(__name__)

_PIECE_FLOPS = {"cpu": 1e9, "cuda": 2e11}  # 10 to 20 ms of two cores, or of a large GPU


@dataclass(frozen=True, slots=True)
class BatchPrograms:
    """Makes programs. piece_flops: the work of a piece, after which live frames may run; 0 for the device's default.

    max_activation_bytes: what a batch may hold at once.
    """

    piece_flops: float = 0.0
    max_activation_bytes: int = 1 << 30

    def start(self, batch: TrainingBatch) -> Program:
        """Returns the program of a batch, of which nothing has run yet."""
        job = batch.jobs[0]
        return _of_task(job) if isinstance(job, Task) else self._of_calls(batch)

    def _of_calls(self, batch: TrainingBatch) -> Program:
        """Differentiates calls under the same weights, each for its caller, or all for the accumulator of a run."""
        try:
            return (yield from self._differentiated(batch, batch.calls))
        finally:
            _mark(batch.weights, batch.jobs)

    def _differentiated(self, whole: TrainingBatch, calls: list[TrainingCall]) -> Program:
        """Does that; where memory is short in two halves, until only calls are refused that do not fit alone.

        A fault that ends the second half ends its calls only, and is noted in the batch.
        """
        weights = whole.weights
        network = weights.network
        run = weights if isinstance(weights, RunWeights) else None
        try:
            batch = yield from gradients(
                network,
                calls,
                total=run is not None,
                piece_flops=self.piece_flops or _PIECE_FLOPS[network.device.type],
                max_cells=max_cells(network.spec, self.max_activation_bytes),
            )
            outcomes = [_or_overflow(call) for call in batch.calls]
            return outcomes if run is None else (yield from run.accumulate(batch.total, outcomes))
        except Exception as error:
            if not is_memory_short(error):
                raise
            log.warning("no memory for a training batch of %d calls: %s", len(calls), error)
        # not in the handler, as the error holds what was computed; nothing has been accumulated
        if len(calls) == 1:
            return [memory_exhausted()]
        half = len(calls) // 2
        first: list[Any] = yield from self._differentiated(whole, calls[:half])
        try:
            return first + (yield from self._differentiated(whole, calls[half:]))
        except Exception as error:  # no end of the first half, which is done, and for a run accumulated
            log.error("%d calls of a training batch of %d failed", len(calls) - half, len(calls), exc_info=error)
        whole.failed = True
        return first + [batch_failed() for _ in calls[half:]]


def max_cells(spec: ModelSpec, max_activation_bytes: int) -> int:
    """Returns how many steps, of all its sequences, a batch may hold activations of at once."""
    gates, hidden = GATES[spec.cell] * spec.hidden_size, spec.hidden_size
    layers = spec.num_layers * spec.directions
    columns = (spec.input_size + 2) * spec.conv_width + 2 * spec.conv_channels
    numbers = spec.input_size + columns + layers * (3 * gates + 3 * hidden) + 2 * spec.outputs_width
    numbers += spec.output_size  # dL/do, which callers of their own gradients get
    return max(1, max_activation_bytes // (numbers * (8 if spec.dtype == "float64" else 4)))


def _of_task(task: Task) -> Program:
    outcome: Any | ServerError
    try:
        outcome = yield from task.start()
    except ServerError as error:
        outcome = error
    finally:
        _mark(task.weights, [task])
    return [outcome]


def _or_overflow(call: CallGradients) -> CallGradients | ServerError:
    if call.overflow:
        return ServerError(Reason.OVERFLOW, f"{call.overflow} is no finite number: nothing of the call was used")
    return call


def _mark(weights: Any, jobs: Sequence[Job]) -> None:
    """Notes that a run's calls are done, with success or not."""
    if isinstance(weights, RunWeights):
        for job in jobs:
            weights.mark(job.call)
