"""The jobs of the training queue: calls, which share batches, and tasks, which run alone.

Jobs of a run are done in the order in which they came. So a task, such as an optimizer's step, is a barrier for its run
and for no other. Nothing here knows torch or gRPC, or reads a clock.
"""

import asyncio
import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from seqloom_server.errors import Reason, ServerError

if TYPE_CHECKING:
    from seqloom_server.nn.losses.training_example import Example, GradientRequest

# A piece of device work after each `next`; in the end an outcome for each job, or the error of that job alone.
Program = Generator[None, None, list[Any | ServerError]]

_ids = itertools.count()


@dataclass(slots=True, eq=False)
class Job:
    """One caller's work. weights: those of a model or of a run; tasks, and calls on a run, keep their order.

    outcome: set once; cancelled where the caller has gone. deadline: for its beginning, on time.monotonic's clock.
    call: (client, number) of a call on a run. caller: whom it is counted for.
    """

    weights: Any
    outcome: "asyncio.Future[Any]"
    deadline: float | None = None
    call: tuple[str, int] | None = None
    caller: str = ""
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    arrived: float = 0.0
    id: int = field(default_factory=_ids.__next__)


@dataclass(slots=True, eq=False, kw_only=True)
class TrainingCall(Job):
    """Sequences that are to be differentiated (a GradientCall of nn); calls that follow one another share a batch.

    steps: of all its sequences. nbytes: of its arrays.
    """

    examples: "list[Example]"
    request: "GradientRequest"
    steps: int
    nbytes: int = 0


@dataclass(slots=True, eq=False, kw_only=True)
class Task(Job):
    """A program that shares its batch with no other job."""

    start: "Callable[[], Generator[None, None, Any]]"


@dataclass(slots=True, eq=False)
class TrainingBatch:
    """Jobs that are done together, one task or many calls. program: None until the device has begun. began: when.

    failed: whether a fault ended some of them, though not the program, as the others are done.
    """

    weights: Any
    jobs: list[Job]
    program: Program | None = None
    seconds: float = 0.0
    began: float = 0.0
    failed: bool = False

    @property
    def calls(self) -> list[TrainingCall]:
        """The jobs that are calls."""
        return [job for job in self.jobs if isinstance(job, TrainingCall)]


def batch_failed() -> ServerError:
    """Returns the error of a job that a fault ended."""
    return ServerError(Reason.INTERNAL, "the batch failed on the device")
