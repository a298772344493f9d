"""The open sequences: each is opened within every bound, fed, and ended exactly once.

How many are open is bounded, in all and for each caller, and live sessions with a rate by the load that they promise.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from seqloom_server.engine.admission.caller_share import SharedBound
from seqloom_server.engine.admission.live_load import LiveLoad, loop_steps
from seqloom_server.engine.admission.resumptions import Resumptions
from seqloom_server.engine.core.overload import ONE_SECOND, overloaded
from seqloom_server.engine.core.sequence import Chunk, Op, Sequence
from seqloom_server.engine.core.session_window import is_idle
from seqloom_server.engine.engine_metrics import EngineMetrics
from seqloom_server.engine.models.registry import Registry
from seqloom_server.engine.models.served_weights import ServedWeights
from seqloom_server.engine.scheduling.scheduler import Scheduler
from seqloom_server.errors import Overload, ServerError

log = logging.getLogger(__name__)


class OpenSequences:
    """The open sequences of one engine, on its event loop. ready: guards `scheduler`, and wakes the device thread.

    most: of each class may be open. load: of live sessions with a rate. ended: called after each sequence's end.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        ready: threading.Condition,
        metrics: EngineMetrics,
        registry: Registry,
        most: dict[Op, int],
        load: LiveLoad,
        ended: Callable[[], None],
    ) -> None:
        self._scheduler = scheduler
        self._ready = ready
        self._metrics = metrics
        self._registry = registry
        self._bounds = {op: SharedBound(limit) for op, limit in most.items()}
        self._ended = ended
        self._open: dict[Sequence, None] = {}
        self._resumptions = Resumptions()
        self.load = load

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(list(self._open))

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._open

    def add(self, sequence: Sequence, weights: ServedWeights, likely_steps: int) -> None:
        """Opens a sequence under these weights; `likely_steps` as of Engine.open(). Raises ServerError OVERLOADED."""
        op, now = sequence.op, sequence.last_active
        bound = self._bounds[op]
        resumed = sequence.resumed and sequence.width <= bound.limit and self.load.could_admit(sequence)
        if op is Op.STREAM:
            self.load.opening()
            if resumed:
                self._resumptions.came(sequence.width, sequence.caller, now)
        else:
            self.load.other_work()
        try:
            if not bound.admits(sequence.caller, sequence.width):
                raise _too_many(bound, sequence)
            new = op is Op.STREAM and not sequence.resumed
            if new and self._resumptions.hold_back(bound.limit - bound.used, sequence.width, now):
                raise overloaded("streams that were lost are resumed first", ONE_SECOND, Overload.SESSIONS)
            if sequence.rate:
                self.load.admit(sequence)
            if sequence.total_steps:
                with self._ready:
                    self._scheduler.reserve(sequence, now)
                    self._ready.notify()  # its deadline may be the first
            elif likely_steps:
                with self._ready:
                    self._scheduler.check(sequence, likely_steps, now)
        except ServerError as error:
            if resumed:
                self._resumptions.refused(sequence.caller, now)
            self._metrics.rejected(error)
            raise
        bound.count(sequence.caller, sequence.width)
        self._open[sequence] = None
        self._registry.hold(weights)
        if op is Op.STREAM:
            self._scheduler.live_sessions += sequence.width
            self._metrics.session_opened(sequence)

    def feed(self, items: Iterable[tuple[Sequence, list[Chunk]]]) -> list[tuple[Sequence, ServerError]]:
        """Queues chunks of sequences; returns the sequences that were refused, which have ended, and their errors."""
        refused = []
        now = time.monotonic()
        self.load.look(now)
        with self._ready:
            for sequence, chunks in items:
                if sequence.op is Op.STREAM:
                    steps = loop_steps(sequence) * sum([len(chunk.rows) for chunk in chunks])
                    self.load.sent(steps, rated=bool(sequence.rate))
                try:
                    self._scheduler.push(sequence, chunks, now)
                except ServerError as error:
                    self._scheduler.cancel(sequence)  # so that no later chunk is queued after the missing one
                    refused.append((sequence, error))
            self._ready.notify()
        if refused:
            self.drop([sequence for sequence, _ in refused])
            for _, refusal in refused:
                self._metrics.rejected(refusal)
        return refused

    def drop(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """Ends sequences without a result; returns those that were open."""
        dropped = [sequence for sequence in dict.fromkeys(sequences) if sequence in self._open]
        if not dropped:  # the common case, after a call that succeeded: no need to wait for the lock
            return []
        with self._ready:
            for sequence in dropped:
                self._scheduler.cancel(sequence)
        for sequence in dropped:
            if sequence.op is Op.INFER and sequence.steps_done:
                self._metrics.wasted(Op.INFER, sequence.weights.model, sequence.steps_done)
            self.forget(sequence)
        return dropped

    def fail(self, sequences: Iterable[Sequence], error: ServerError) -> list[Sequence]:
        """Ends sequences with an error; returns those that were open."""
        dropped = self.drop(sequences)
        for sequence in dropped:
            try:
                sequence.sink.fail(sequence, error)
            except Exception:
                log.exception("an error could not be delivered: %s", error)
        return dropped

    def forget(self, sequence: Sequence) -> None:
        """Removes a sequence that has ended; called exactly once for each."""
        del self._open[sequence]
        self._bounds[sequence.op].count(sequence.caller, -sequence.width)
        if sequence.rate:
            self.load.end(sequence)
        if sequence.op is Op.STREAM:
            self._scheduler.live_sessions -= sequence.width
            self._metrics.session_closed(sequence)
        self._registry.release(sequence.weights)
        self._ended()

    def idle(self, seconds: float) -> list[Sequence]:
        """Returns the sequences that have been idle for so long."""
        now = time.monotonic()
        with self._ready:
            return [sequence for sequence in self._open if is_idle(sequence, now, seconds)]


def _too_many(bound: SharedBound, sequence: Sequence) -> ServerError:
    """Returns the error of a sequence for which there is no room, in all or of its caller's."""
    live = sequence.op is Op.STREAM
    kind = "session" if live else "sequence"
    full = bound.used >= bound.limit
    which = "are open" if full else "of this caller are open"
    count = bound.used if full else bound.held(sequence.caller)
    return overloaded(
        f"{kind} limit reached: {count:.0f} {kind}s {which}",
        ONE_SECOND,
        Overload.SESSIONS if live else Overload.QUEUE_FULL,
    )
