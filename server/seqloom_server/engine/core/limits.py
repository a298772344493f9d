"""The scheduler's limits of a slice and of the queue."""

from dataclasses import dataclass, field

from seqloom_server.engine.core.sequence import Op


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """The limits of a slice and of the queue.

    max_batch_steps: steps of a slice, padding included. slice_seconds: while live sessions are open;
    bulk_slice_seconds: while none is. max_padding: the largest share of padding in a slice. grain_seconds: a shorter
    slice is not cut to reduce padding; 0 if padding costs as much as other steps. max_queue_seconds: that a whole
    sequence may be expected to wait. shares: the fraction of device time guaranteed to each class, of what live
    sessions that keep their rate leave. halved: the fewest streams in lockstep that run as two slices; with fewer, the
    additional messages cost more than is gained.
    """

    max_batch_sequences: int = 256
    max_batch_steps: int = 32768
    slice_seconds: float = 0.02
    bulk_slice_seconds: float = 0.2
    grain_seconds: float = 0.005
    max_padding: float = 0.25
    halved: int = 32
    max_queue_items: int = 16384
    max_queue_steps: int = 2_000_000
    max_queue_bytes: int = 1 << 30
    max_queue_seconds: float = 10.0
    shares: dict[Op, float] = field(default_factory=lambda: {Op.STREAM: 0.5, Op.INFER: 0.2, Op.TRAIN: 0.2})
