"""The bounds of a slice and of the queue, as the scheduler and the training queue keep them."""

from dataclasses import dataclass, field

from seqloom_server.engine.core.sequence import Op


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """The bounds of a slice and of the queue.

    max_batch_steps counts padded cells. slice_seconds holds while live sessions are open, bulk_slice_seconds while none
    is. max_padding: the share of a slice's padded cells that may be empty. grain_seconds: a slice shorter than this is
    not cut for being thin; 0 where empty cells cost as much as others. shares: of the device, what each class is owed.
    halved: so many streams in step make two slices; of fewer, what another message costs is more than what is won.
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
    shares: dict[Op, float] = field(default_factory=lambda: {Op.STREAM: 0.5, Op.INFER: 0.2, Op.TRAIN: 0.2})
