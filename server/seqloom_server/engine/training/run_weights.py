"""A run on the device thread: its own weights, the accumulated gradient, the optimizer, and what is done with them.

Its programs are generators that do a bounded piece of work at a time. Programs of one run do not overlap, so none sees
weights or an accumulator that are half changed.
"""

import logging
from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from seqloom_server.engine.models.served_weights import threads_for
from seqloom_server.engine.training.step_journal import StepJournal, StepRecord
from seqloom_server.errors import Reason, ServerError
from seqloom_server.memory import is_memory_short
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.gradients.call_share import CallGradients
from seqloom_server.nn.optim import Optimizer, Overflow, largest_of
from seqloom_server.nn.optimizer_spec import OptimizerSpec

log = logging.getLogger(__name__)

_PIECE_NUMBERS = 1 << 20  # elements that a piece updates or copies

Tensors = dict[str, torch.Tensor]
CallKey = tuple[str, int]  # client and number


@dataclass(frozen=True, slots=True)
class Accumulated:
    """The reply to ForwardBackward: the call's gradient is accumulated. losses: [N]. step: which will apply it."""

    losses: npt.NDArray[np.float64]
    step: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """The reply to OptimStep: a step was applied. norm: of the gradient, before clipping. calls: see StepRecord."""

    step: int
    norm: float
    calls: dict[str, int]


@dataclass(slots=True)
class Snapshot:
    """A run at one moment, on the CPU: all that it needs to go on. done: by client, the last call that is done."""

    parameters: Tensors
    optimizer: Tensors
    accumulated: Tensors | None
    accumulated_calls: int
    step: int
    loss: float | None
    done: dict[str, int] = field(default_factory=dict)


class RunWeights:
    """The weights of one run on the device. step: steps applied. done: by client, the last call that was done."""

    def __init__(
        self, model: str, network: Network, optimizer: OptimizerSpec, clip_norm: float, journal: StepJournal
    ) -> None:
        self.model = model
        self.network = network
        self.threads = threads_for(network.spec)
        self.step = 0
        self.done: dict[str, int] = {}
        self.accumulated_calls = 0
        self.loss: float | None = None
        self._clip_norm = clip_norm or None
        self._parameters = network.parameters()
        self._optimizer = Optimizer(optimizer, self._parameters)
        self._accumulated: Tensors | None = None
        self.journal = journal

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        tensors = [*self._parameters.values(), *self._optimizer.state().values(), *(self._accumulated or {}).values()]
        return sum(tensor.nbytes for tensor in tensors)

    def mark(self, call: CallKey | None) -> None:
        """Notes that a call is done, with success or not."""
        if call is not None:
            client, number = call
            self.done[client] = max(number, self.done.get(client, 0))

    def forget(self, client: str) -> None:
        """Forgets a client that will not call again. Safe from any thread."""
        self.done.pop(client, None)

    def accumulate(
        self, total: Tensors | None, calls: list[CallGradients | ServerError]
    ) -> Generator[None, None, list[Accumulated | ServerError]]:
        """Adds the sum of the calls' gradients, which is overwritten, to what the next step applies.

        total: None where no call has one. Returns the answer to each call: where the new sum would not be finite
        OVERFLOW to all, and then nothing was added.
        """
        if total is not None and (overflow := (yield from self._add(total))) is not None:
            return [call if isinstance(call, ServerError) else overflow for call in calls]
        answers: list[Accumulated | ServerError] = []
        for call in calls:
            if isinstance(call, ServerError):
                answers.append(call)
            else:
                answers.append(Accumulated(call.losses, self.step + 1))
                self.accumulated_calls += 1
                self.loss = float(call.losses.sum())
        return answers

    def _add(self, total: Tensors) -> Generator[None, None, ServerError | None]:
        largest: list[torch.Tensor] = []
        for name, before in (self._accumulated or {}).items():
            # into the new tensors, so that the old ones stay whole
            largest.append(largest_of(total[name].add_(before)))
            if before.numel() >= _PIECE_NUMBERS:
                yield
        if largest and not bool(torch.isfinite(torch.stack(largest)).all()):
            return ServerError(
                Reason.OVERFLOW, f"the gradient, summed over the calls of step {self.step + 1}, would overflow"
            )
        self._accumulated = total
        return None

    def apply_step(
        self, call: CallKey, learning_rate: float | None, expected_step: int, snapshot_interval: int = 0
    ) -> Generator[None, None, tuple[Stepped | ServerError, Snapshot | None]]:
        """Applies what was accumulated and clears it.

        Returns the step, with a snapshot behind every `snapshot_interval` steps (0: none); or OVERFLOW where the sum of
        all calls' gradients, a weight or a moment would not be finite: then only what was accumulated is cleared, and
        there is a snapshot of that. Without memory there is no snapshot. Raises STEP_MISMATCH or NOTHING_ACCUMULATED,
        and then nothing has changed.
        """
        number = self.step + 1
        if expected_step and expected_step != number:
            raise ServerError(
                Reason.STEP_MISMATCH,
                f"expected_step is {expected_step}: this would be step {number}",
                field="expected_step",
            )
        if self._accumulated is None:
            raise ServerError(Reason.NOTHING_ACCUMULATED, f"step {number} has no gradient: call forward_backward first")
        try:
            norm = yield from self._optimizer.step(self._accumulated, learning_rate, self._clip_norm, _PIECE_NUMBERS)
        except Overflow as error:
            self._accumulated, self.accumulated_calls = None, 0
            refusal = ServerError(
                Reason.OVERFLOW,
                f"step {number} was not applied: {error} would overflow; weights and moments are as before, what was "
                "accumulated is dropped",
            )
            return refusal, (yield from self._snapshot_of_what_is_done(call))
        self._accumulated, self.accumulated_calls = None, 0
        self.step = number
        self.mark(call)
        calls = dict(self.done)
        try:
            self.journal.append(StepRecord(number, *call, calls))
        except (OSError, MemoryError) as error:
            log.error("step %d is not in the journal, and can only be lost with those after it: %s", number, error)
        due = snapshot_interval and number % snapshot_interval == 0
        return Stepped(number, norm, calls), (yield from self._snapshot_of_what_is_done()) if due else None

    def _snapshot_of_what_is_done(self, call: CallKey | None = None) -> Generator[None, None, Snapshot | None]:
        """Returns a snapshot; None where memory is short, as an error would say that nothing was done."""
        try:
            return (yield from self.snapshot(call))
        except Exception as error:
            if not is_memory_short(error):
                raise
            log.error("no checkpoint of a run of %s behind step %d: memory is short: %s", self.model, self.step, error)
            return None

    def snapshot(self, call: CallKey | None = None) -> Generator[None, None, Snapshot]:
        """Copies everything to the CPU. call: asks for it, and is done with it."""
        self.mark(call)
        parts: list[Tensors] = []
        for tensors in (self._parameters, self._optimizer.state(), self._accumulated or {}):
            copies: Tensors = {}
            for name, tensor in tensors.items():
                copies[name] = tensor.detach().to("cpu", copy=True)
                if tensor.numel() >= _PIECE_NUMBERS:
                    yield
            parts.append(copies)
        accumulated = parts[2] if self._accumulated is not None else None
        return Snapshot(parts[0], parts[1], accumulated, self.accumulated_calls, self.step, self.loss, dict(self.done))

    def restore(self, snapshot: Snapshot) -> Generator[None, None, None]:
        """Goes back to a snapshot in everything but which calls are done; without memory for it nothing changes."""
        accumulated: Tensors | None = None
        if snapshot.accumulated is not None:
            accumulated = {
                name: tensor.to(self.network.device, copy=True) for name, tensor in snapshot.accumulated.items()
            }
        self._optimizer.load_state(snapshot.optimizer)  # before the weights: it needs memory, and they need none
        with torch.no_grad():
            for name, tensor in snapshot.parameters.items():
                self._parameters[name].copy_(tensor)
                yield
        self._accumulated = accumulated
        self.accumulated_calls, self.step, self.loss = snapshot.accumulated_calls, snapshot.step, snapshot.loss

    def fork(self) -> Generator[None, None, Network]:
        """Returns a network with a copy of the weights. Raises OVERFLOW where one is not finite."""
        copies: Tensors = {}
        for name, tensor in self._parameters.items():
            copies[name] = tensor.detach().clone()
            if not bool(torch.isfinite(copies[name]).all()):
                raise ServerError(Reason.OVERFLOW, f"the run's {name} holds a number that is not finite")
            if tensor.numel() >= _PIECE_NUMBERS:
                yield
        return Network(self.network.spec, copies, self.network.device)
