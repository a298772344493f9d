"""How long training takes by the clock, learned from the batches that ran: a time per batch and a time per step.

By the clock, so live frames and whole sequences that run between a batch's pieces are in it. The last few batches
count: a machine that has become slow, or fast again, is noticed within as many.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from seqloom_server.engine.core.training_job import Job, TrainingCall

_GAIN = 0.7  # of what the last batch says against all earlier ones
_MAX_RISE = 8.0  # that one batch may ask for, as a factor: it may have waited for what never comes again
_MAX_KINDS = 1024

Kind = tuple[Any, bool]  # a model, and whether it is calls or tasks


def kind_of(job: Job) -> Kind:
    """Returns which jobs take about as long as this one: calls, or tasks, of the same model."""
    return getattr(job.weights, "model", job.weights), isinstance(job, TrainingCall)


def steps_of(job: Job) -> int:
    return job.steps if isinstance(job, TrainingCall) else 0


@dataclass(slots=True)
class Load:
    """What is queued, of all callers or of one. kinds: (jobs, steps) of each kind. nbytes: of the calls' arrays."""

    items: int = 0
    steps: int = 0
    nbytes: int = 0
    kinds: dict[Kind, tuple[int, int]] = field(default_factory=dict)

    def count(self, job: Job, sign: int) -> None:
        """Adds a job, or takes it away where sign is -1."""
        steps, kind = sign * steps_of(job), kind_of(job)
        self.items += sign
        self.steps += steps
        self.nbytes += sign * (job.nbytes if isinstance(job, TrainingCall) else 0)
        count, sum_ = self.kinds.get(kind, (0, 0))
        self.kinds[kind] = count + sign, sum_ + steps
        if not self.kinds[kind][0]:
            del self.kinds[kind]


class TrainingPace:
    """The seconds of batches by kind. max_batch_sequences, max_batch_steps: how much a batch holds."""

    def __init__(self, max_batch_sequences: int, max_batch_steps: int) -> None:
        self._max_batch_sequences = max_batch_sequences
        self._max_batch_steps = max_batch_steps
        self._costs: OrderedDict[Kind, tuple[float, float]] = OrderedDict()  # seconds per batch, per step

    def observe(self, kind: Kind, steps: int, seconds: float) -> None:
        """Learns from a batch, which took this long from its beginning to its end."""
        seconds = max(seconds, 1e-6)  # a clock need not have ticked
        if kind not in self._costs:
            self._costs[kind] = (seconds / 2, seconds / 2 / steps) if steps else (seconds, 0.0)
        else:
            per_batch, per_step = self._costs[kind]
            expected = per_batch + per_step * steps
            wrong = min(seconds / expected, _MAX_RISE)
            # Either is wrong as far as it is what the time is made of, so batches of different sizes tell them apart.
            batch_part, step_part = per_batch / expected, per_step * steps / expected
            gain = _GAIN / max(batch_part, step_part)
            self._costs[kind] = per_batch * wrong ** (gain * batch_part), per_step * wrong ** (gain * step_part)
        self._costs.move_to_end(kind)
        if len(self._costs) > _MAX_KINDS:
            self._costs.popitem(last=False)

    def seconds(self, kind: Kind, steps: int, batches: float = 1.0) -> float:
        """Returns the expected seconds of so many steps in so many batches, 0 of a kind that has never run."""
        per_batch, per_step = self._costs.get(kind, (0.0, 0.0))
        return batches * per_batch + steps * per_step

    def seconds_of(self, load: Load) -> float:
        """Returns the expected seconds of all that is queued, in batches as full as they may be."""
        total = 0.0
        for kind, (items, steps) in load.kinds.items():
            shared = max(1.0, items / self._max_batch_sequences, steps / self._max_batch_steps)
            total += self.seconds(kind, steps, shared if kind[1] else items)  # a task has no company
        return total
