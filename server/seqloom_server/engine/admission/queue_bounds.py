"""What waits in the queue, in all and for each caller, and the bounds on it: items, steps and bytes."""

from seqloom_server.engine.admission.caller_share import admits
from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.overload import overloaded
from seqloom_server.engine.core.sequence import Op, Sequence
from seqloom_server.errors import Overload, Reason, ServerError

_SURELY = 0.9  # of a bound: whoever has it all, up to here nobody is refused (caller_share.py)
_WHOLE_SEQUENCES_PART = 0.75  # of the queue's bounds; the rest is reserved for live frames


class QueueBounds:
    """Counts what waits. items: per class, the number of queued sequences or training calls."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self._limits = limits
        self.items = dict.fromkeys(Op, 0)
        self.steps = 0
        self.bytes = 0
        self._callers: dict[str, list[int]] = {}  # items, steps, bytes of each caller that has any

    @property
    def queued(self) -> int:
        """The number of queued sequences."""
        return self.items[Op.STREAM] + self.items[Op.INFER]

    def count(self, sequence: Sequence, items: int, steps: int, nbytes: int) -> None:
        """Adds to the counts, or takes from them."""
        self.items[sequence.op] += items
        self.steps += steps
        self.bytes += nbytes
        own = self._callers.get(sequence.caller)
        if own is None:
            own = self._callers[sequence.caller] = [0, 0, 0]
        own[0] += items
        own[1] += steps
        own[2] += nbytes
        if not (own[0] or own[1] or own[2]):
            del self._callers[sequence.caller]

    def check(self, sequence: Sequence, steps: int, nbytes: int) -> None:
        """Raises ServerError OVERLOADED, or OVER_LIMIT for more than the queue could ever hold."""
        limits = self._limits
        if sequence.weights.whole_only and sequence.waiting_steps + steps > limits.max_batch_steps:
            raise ServerError(
                Reason.OVER_LIMIT,
                f"the sequence has {sequence.waiting_steps + steps} steps: expected at most {limits.max_batch_steps} "
                "(max_batch_steps) for a bidirectional model, which runs a sequence in one slice",
            )
        part = 1.0 if sequence.op is Op.STREAM else _WHOLE_SEQUENCES_PART
        surely = _SURELY * part
        if (
            self.items[Op.STREAM] + self.items[Op.INFER] < surely * limits.max_queue_items
            and self.steps + steps <= surely * limits.max_queue_steps
            and self.bytes + nbytes <= surely * limits.max_queue_bytes
        ):
            return
        own = self._callers.get(sequence.caller, (0, 0, 0))
        joins = not sequence.chunks and not sequence.in_flight
        for unit, mine, used, added, limit in (
            ("items", own[0], self.queued, int(joins), limits.max_queue_items),
            ("steps", own[1], self.steps, steps, limits.max_queue_steps),
            ("bytes", own[2], self.bytes, nbytes, limits.max_queue_bytes),
        ):
            most = part * limit
            if added > most and unit != "items":
                raise ServerError(
                    Reason.OVER_LIMIT,
                    f"{added} {unit} at once: expected at most {most:.0f}, all that the queue accepts",
                )
            if added and not admits(mine, used, most, added):
                whose = "the queue is full" if used + added > most else "the caller's part of the queue is full"
                # a repeat may succeed when about half of the queue has run
                seconds = sequence.weights.cost.seconds(1, self.steps) / 2
                raise overloaded(
                    f"{whose}: {self.queued} items, {self.steps} steps, {self.bytes} bytes, of which the caller has "
                    f"{own[0]}, {own[1]} and {own[2]}",
                    min(max(seconds, 0.05), 5.0),
                    Overload.QUEUE_FULL,
                )
