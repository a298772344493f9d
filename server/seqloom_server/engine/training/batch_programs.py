"""Training batches as programs for the device: generators that do a bounded piece of work at a time.

Where they stop is a pure function of shapes and settings, never of a clock or of load, so that a run repeats exactly.
They run on the device thread; their outcomes are numpy.
"""

from dataclasses import dataclass
from typing import Any

import torch

from seqloom_server.engine.core.overload import memory_exhausted
from seqloom_server.engine.core.training_job import Program, Task, TrainingBatch, TrainingCall
from seqloom_server.engine.training.run_weights import RunWeights
from seqloom_server.errors import Reason, ServerError
from seqloom_server.nn.gradients.batch_gradients import CallGradients, gradients
from seqloom_server.nn.spec import GATES, ModelSpec

_PIECE_FLOPS = {"cpu": 1e9, "cuda": 2e11}  # 10 to 20 ms of two cores, or of a large GPU


@dataclass(frozen=True, slots=True)
class BatchPrograms:
    """How training is cut. piece_flops: after which it may be interrupted; 0 goes by the device.

    max_activation_bytes: what a batch may hold at once.
    """

    piece_flops: float = 0.0
    max_activation_bytes: int = 1 << 30

    def start(self, batch: TrainingBatch) -> Program:
        """Returns the program of a batch, of which nothing has run yet."""
        job = batch.jobs[0]
        return _alone(job) if isinstance(job, Task) else _together(batch.weights, batch.calls, self)


def max_cells(spec: ModelSpec, max_activation_bytes: int) -> int:
    """The steps, of all its sequences, that a batch may have at once: what is held of each is bounded."""
    gates, hidden = GATES[spec.cell] * spec.hidden_size, spec.hidden_size
    layers = spec.num_layers * spec.directions
    columns = (spec.input_size + 2) * spec.conv_width + 2 * spec.conv_channels
    numbers = spec.input_size + columns + layers * (3 * gates + 3 * hidden) + 2 * spec.outputs_width
    numbers += spec.output_size  # dL/do, which callers of their own gradients get
    return max(1, max_activation_bytes // (numbers * (8 if spec.dtype == "float64" else 4)))


def _alone(task: Task) -> Program:
    assert task.start is not None
    outcome: Any | ServerError
    try:
        outcome = yield from task.start()
    except ServerError as error:
        outcome = error
    finally:
        _mark(task.weights, [task])
    return [outcome]


def _together(weights: Any, calls: list[TrainingCall], settings: BatchPrograms) -> Program:
    network = weights.network
    total = isinstance(weights, RunWeights)
    try:
        batch = yield from gradients(
            network,
            [(call.examples, call.request) for call in calls if call.request is not None],
            total=total,
            piece_flops=settings.piece_flops or _PIECE_FLOPS[network.device.type],
            max_cells=max_cells(network.spec, settings.max_activation_bytes),
        )
        outcomes = [_checked(each) for each in batch.calls]
        if total:
            accumulated = sum(not isinstance(outcome, ServerError) for outcome in outcomes)
            try:
                yield from weights.accumulate(batch.total, accumulated)
            except ServerError as overflow:
                outcomes = [each if isinstance(each, ServerError) else overflow for each in outcomes]
            outcomes = [weights.accumulated_reply(each) for each in outcomes]
    except (MemoryError, torch.OutOfMemoryError):
        return [memory_exhausted()] * len(calls)
    finally:
        _mark(weights, calls)
    return outcomes


def _checked(call: CallGradients) -> CallGradients | ServerError:
    if call.overflow:
        return ServerError(Reason.OVERFLOW, f"{call.overflow} is no finite number: nothing of the call was used")
    return call


def _mark(weights: Any, jobs: "list[Task] | list[TrainingCall]") -> None:
    """A run's calls are done, whatever came of them."""
    if isinstance(weights, RunWeights):
        for job in jobs:
            weights.mark(job.call)
