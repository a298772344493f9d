"""One stream group of a StreamInfer call: its calls become chunks for the engine, and slice results its answers.

What is wrong with a call fails that call and those that were sent behind it before its caller could know; nothing of
them runs, and the group goes on.
"""

import numpy as np
from seqloom.v1 import inference_service_pb2

from seqloom_server.engine.core.sequence import Chunk, Sequence, SliceResult, StateArrays
from seqloom_server.engine.core.session_window import SessionWindow
from seqloom_server.engine.core.stream_group import GroupWork, Index
from seqloom_server.errors import Reason, ServerError, invalid, over_limit
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc.calls import converters
from seqloom_server.rpc.inference.group_answers import (
    FIRST_STEP_BYTES,
    Changes,
    Failure,
    Frames,
    GroupAnswers,
    States,
    StepCounts,
)
from seqloom_server.rpc.inference.group_call import MAX_CALL_BYTES, GroupCall, Parts
from seqloom_server.rpc.inference.group_opening import GroupOpening
from seqloom_server.rpc.inference.group_outgoing import GroupOutgoing
from seqloom_server.rpc.inference.outgoing import Opened
from seqloom_server.rpc.inference.stream_session import SessionOwner

_LEAST_CALLS = 64  # that may wait, however small the window is
_MOST_ANSWERS = 4  # of a call: its frames, and some of them first where they are split; a snapshot; states
_OF_A_CALL = (Reason.INVALID_FIELD, Reason.OVER_LIMIT)  # errors that fail a call, and not its group


class GroupSession:
    """One group, and the sink of its sequence's results. opened_at: by time.monotonic()."""

    live = True
    begun = False
    window: SessionWindow

    def __init__(self, owner: SessionOwner, number: int, spec: ModelSpec, opening: GroupOpening) -> None:
        self.opened: Opened | None = None
        self.model = ""
        self.opened_at = 0.0
        self._owner = owner
        self._number = number
        self._spec = spec
        self._opening = opening
        self._most_waiting = max(opening.window_steps, _LEAST_CALLS) * _MOST_ANSWERS
        self._answers = GroupAnswers(
            spec,
            opening.output,
            opening.count,
            opening.step_bytes,
            self.outgoing,
            owner.send,
            self._answered,
            opening.stream_steps,
        )
        self._steps = StepCounts(opening.count, opening.stream_steps)  # those of all calls so far
        self._clock = opening.resumed or 0  # the steps of a stream that is in every call
        self._parts: Parts | None = None
        self._parts_bytes = 0
        self._failure: Failure | None = None  # the last

    @property
    def promised(self) -> int:
        """Bytes charged for outputs that have not been computed."""
        return self._answers.promised

    @property
    def streams(self) -> int:
        """The live streams that it is."""
        return self._opening.count

    def outgoing(self) -> GroupOutgoing:
        """Returns a new entry of this group, with `opened` if that was not sent yet."""
        opened, self.opened = self.opened, None
        return GroupOutgoing(self._number, opened)

    def chunks(self, entry: inference_service_pb2.GroupRequest, now: float) -> list[Chunk]:
        """Returns the chunks of an entry. Raises ServerError, which ends the group."""
        window, failures = self.window, 0 if self._failure is None else self._failure[0]
        no_call = only_acknowledges(entry)
        if window.ended and no_call:
            return []
        window.acknowledge(entry.acknowledged_steps, "groups.acknowledged_steps")
        if no_call:
            return []
        if entry.failures > failures:
            raise invalid("groups.failures", f"is {entry.failures}: expected at most {failures}")
        waiting = self._answers.waiting
        if waiting > self._most_waiting + entry.end:  # so calls without steps are bounded like steps
            raise ServerError(
                Reason.WINDOW_EXCEEDED,
                f"{waiting} parts of calls are not answered: expected at most {self._most_waiting}; receive answers "
                "before sending more",
            )
        if entry.failures < failures:
            self._pass_over(entry)
            return []
        try:
            call = self._whole_call(entry)
            if call is None:
                return []
            self._promise(call)
        except ServerError as error:
            if error.reason not in _OF_A_CALL:
                raise
            self.drop_parts()
            self._failure = failures + 1, self._owner.status(error)
            self._pass_over(entry)
            return []
        window.receive(call.steps, whole=True)
        window.ended = call.end
        return self._chunks_of(call, now)

    def ending(self, now: float) -> list[Chunk]:
        """Returns the chunks that end the group, whose caller has closed the stream."""
        self.drop_parts()
        failures = 0 if self._failure is None else self._failure[0]
        return self.chunks(inference_service_pb2.GroupRequest(end=True, failures=failures), now)

    def leaving(self, now: float) -> list[Chunk]:
        """Returns the chunks by which the caller is told, with a snapshot, that the server goes away."""
        if self.window.ended:
            return []
        self._answers.expect(States(snapshot=True, going_away=True))
        rows = np.empty((0, self._opening.count, self._spec.input_size), self._spec.dtype)
        return [Chunk(rows, now, silent=True, work=GroupWork(asks=True))]

    def deliver(self, sequence: Sequence, result: SliceResult) -> None:
        self._answers.take(result, (sequence.queue_seconds, sequence.compute_seconds))
        if result.final_state is not None:
            self._owner.ended(self._number)

    def fail(self, sequence: Sequence, error: ServerError) -> None:
        self._owner.fail(self._number, error)

    def _answered(self, steps: int) -> None:
        self.window.answered += steps

    def _pass_over(self, entry: inference_service_pb2.GroupRequest) -> None:
        """Answers the call of an entry by the last failure, once all of it has come."""
        if not entry.more:
            assert self._failure is not None
            self._answers.expect(self._failure)

    def _whole_call(self, entry: inference_service_pb2.GroupRequest) -> GroupCall | None:
        """Returns the call that an entry completes, or None. Raises ServerError."""
        if self._parts is None:
            call = GroupCall.checked(entry, self._spec, self._opening.count)
            if not (entry.more or entry.HasField("place")):
                return call
            assert call.frames is not None
            # until it is whole, and counts in the queue; not as live: the rest of it must be read in any case
            self._owner.promise(call.frames.nbytes, live=False)
            self._parts_bytes = call.frames.nbytes
            self._parts = Parts(call, self._spec)
        parts = self._parts
        parts.add(entry)
        if entry.more:
            return None
        parts.check_complete()
        self.drop_parts()
        return parts.call

    def drop_parts(self) -> None:
        """Forgets a call that has not come whole, and returns what was charged for it."""
        if self._parts is not None:
            self._owner.withdraw(self._parts_bytes, live=False)
            self._parts, self._parts_bytes = None, 0

    def _promise(self, call: GroupCall) -> None:
        """Charges the outputs of a call. Raises ServerError."""
        call.check_fits(self._opening.most_bytes)
        width = 0 if call.frames is None else len(call.frames)
        if width * call.steps > self._opening.most_rows:
            raise over_limit(
                "groups.frames",
                f"have {width * call.steps} steps of streams: expected at most {self._opening.most_rows}, all that the "
                "queue accepts",
            )
        size = width * call.steps * self._opening.step_bytes
        if size > MAX_CALL_BYTES:
            raise over_limit("groups.frames", f"need {size} bytes of outputs: expected at most {MAX_CALL_BYTES}")
        if self._snapshot_is_due(call.steps):
            size += self._opening.count * converters.state_bytes(self._spec)
        if call.gets:
            size += self._width(call.get) * converters.state_bytes(self._spec)
        size += FIRST_STEP_BYTES * width
        if size:
            self._owner.promise(size, live=True)
            self._answers.promised += size

    def _chunks_of(self, call: GroupCall, now: float) -> list[Chunk]:
        """Returns the chunks of a call, and expects their answers."""
        chunks: list[Chunk] = []
        changes: tuple[tuple[Index | None, StateArrays] | None, Index | None] | None = call.set, call.reset

        def add(rows: int, streams: Index | None, *, asks: bool = False, last: bool = False) -> None:
            nonlocal changes
            empty = np.empty((0, rows, self._spec.input_size), self._spec.dtype)
            chunks.append(Chunk(empty, now, silent=True, last=last, work=GroupWork(streams, *_taken(changes), asks)))
            changes = None

        if call.frames is not None:
            width, steps = call.frames.shape[:2]
            first_step = self._steps.of(call.streams)
            self._steps.add(call.streams, steps)
            chunks.append(Chunk(call.frames.transpose(1, 0, 2), now, work=GroupWork(call.streams, *_taken(changes))))
            self._answers.expect(Frames(width, steps, call.streams, first_step))
            changes = None
            due = self._snapshot_is_due(steps)
            self._clock += steps
            if due:
                add(self._opening.count, None, asks=True)
                self._answers.expect(States(self._opening.count * converters.state_bytes(self._spec), snapshot=True))
        if call.gets:
            add(self._width(call.get), call.get, asks=True)
            self._answers.expect(States(self._width(call.get) * converters.state_bytes(self._spec)))
        if not chunks and not call.end:
            self._answers.expect(Changes())
        if call.end:
            add(self._opening.count, None, last=True)
        elif not chunks:
            changed = self._changed(call)
            add(self._width(changed), changed)
        return chunks

    def _snapshot_is_due(self, steps: int) -> bool:
        interval = self._opening.snapshot_interval
        return bool(interval) and (self._clock + steps) // interval > self._clock // interval

    @staticmethod
    def _changed(call: GroupCall) -> Index | None:
        """Returns the streams whose states a call replaces, None for all."""
        where: list[Index] = []
        if call.set is not None:
            if call.set[0] is None:
                return None
            where.append(call.set[0])
        if call.reset is not None:
            where.append(call.reset)
        return where[0] if len(where) == 1 else np.unique(np.concatenate(where))

    def _width(self, streams: Index | None) -> int:
        return self._opening.count if streams is None else len(streams)


def _taken(
    changes: tuple[tuple[Index | None, StateArrays] | None, Index | None] | None,
) -> tuple[tuple[Index | None, StateArrays] | None, Index | None]:
    return (None, None) if changes is None else changes


def only_acknowledges(entry: inference_service_pb2.GroupRequest) -> bool:
    """Returns whether an entry, which neither opens nor cancels a group, only acknowledges steps."""
    return not (entry.end or any(entry.HasField(field) for field in ("frames", "set", "reset", "get")))
