"""Training batches as programs for the device thread: generators that do a bounded piece of work at a time.

Where they stop is a pure function of shapes and settings, never of a clock or of load, so that a run repeats exactly.
Their outcomes are NumPy arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from seqloom_server.engine.core.overload import memory_exhausted
from seqloom_server.engine.core.training_job import Job, Program, Task, TrainingBatch, TrainingCall
from seqloom_server.engine.training.run_weights import RunWeights
from seqloom_server.errors import Reason, ServerError
from seqloom_server.nn.gradients.batch_gradients import gradients
from seqloom_server.nn.gradients.call_share import CallGradients
from seqloom_server.nn.spec import GATES, ModelSpec

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
        return _of_task(job) if isinstance(job, Task) else self._of_calls(batch.weights, batch.calls)

    def _of_calls(self, weights: Any, calls: list[TrainingCall]) -> Program:
        """Differentiates calls under the same weights, each for its caller, or all for the accumulator of a run."""
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
        except (MemoryError, torch.OutOfMemoryError):
            return [memory_exhausted() for _ in calls]
        finally:
            _mark(weights, calls)


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
