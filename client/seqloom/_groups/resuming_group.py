"""A stream group that goes on after its connection or its server was lost, as single streams do.

On the new call it sets the states of its last snapshot, and sends the calls since again: those that were answered for
the states' sake, the others for their answers. So each call is answered once, whether it was sent once or twice.
"""

import collections
import copy

from seqloom._groups.group_answers import Answer
from seqloom._groups.group_request import GroupEntry, entries, state_blocks, stream_set
from seqloom._groups.group_room import LEAST_CALLS
from seqloom._groups.group_session import GroupSession
from seqloom._groups.kept_calls import KeptCall, KeptCalls
from seqloom._resume.reattachment import Reattachment
from seqloom._resume.resumable import Calls, Resumable
from seqloom._resume.snapshot_interval import SnapshotInterval
from seqloom._streaming.session import EntryQueue
from seqloom._streaming.stream_budget import StreamBudget
from seqloom.errors import SeqloomError, StreamLost
from seqloom.tensors import Array
from seqloom.types import GroupSnapshot, State
from seqloom.v1 import inference_service_pb2

GroupRequest = inference_service_pb2.GroupRequest


class ResumingGroup(Resumable, GroupSession):
    """A group that was opened by `opening`. state_bytes: of one stream. seconds: for which it is tried to resume it."""

    def __init__(
        self,
        queue: EntryQueue,
        number: int,
        step_bytes: int,
        budget: StreamBudget,
        *,
        calls: Calls,
        opening: inference_service_pb2.OpenGroup,
        state_bytes: int,
        seconds: float,
    ) -> None:
        super().__init__(queue, number, opening.streams, step_bytes, budget)
        self._calls = calls
        self._opening = opening
        self._interval = SnapshotInterval(calls.pauses, opening.streams)
        self._interval.state_bytes = opening.streams * state_bytes
        self._kept = KeptCalls(opening.streams)
        self._reattachment = Reattachment(self, calls.pauses, seconds)
        self._granted = 0  # steps that were sent before it was lost, for which the window had room then
        self._begun = self._seen = self._gone = 0  # steps before this call; that it has answered; that were sent on it
        self._answered = 0
        self._failure: SeqloomError | None = None  # of its last call that failed

    @property
    def progress(self) -> int:
        """The number of calls that were answered."""
        return self._answered

    @property
    def acknowledged(self) -> int:
        """Steps on this call that the caller has received, or that it had room for, of those that are answered."""
        return min(max(self.received, self._granted), self._seen) - self._begun

    async def send(self, frames: Array, streams: Array | None, deadline: float, *, kept: bool) -> Answer:
        return await super().send(frames if kept else self._kept.copy_of(frames), streams, deadline, kept=kept)

    def can_keep(self, size: int) -> bool:
        return self._kept.has_room(size, self._interval)

    def count_received(self, answer: Answer) -> None:
        super().count_received(answer)
        if self._kept.unsent:
            self._send_kept()

    def reopen(self) -> None:
        """Opens it again, with the steps of its last snapshot. Raises Cancelled once the client is closed."""
        self._calls.attach(self)
        message = inference_service_pb2.OpenGroup()
        message.CopyFrom(self._opening)
        message.weights_version = 0  # the fingerprint says which
        self._kept.fill(message.resumed)
        message.resumed.fingerprint = self._fingerprint
        self._queue.put(GroupEntry(self, GroupRequest(open=message)))

    def take(self, entry: inference_service_pb2.GroupResponse) -> None:
        """Handles a response of the server for this group."""
        super().take(entry)
        if entry.going_away and not self.ended:
            self._go_away()
        elif self._kept.unsent:
            self._send_kept()

    def _take_opened(self, opened: inference_service_pb2.SessionOpened) -> None:
        if not self._reopened(opened):
            super()._take_opened(opened)

    def _snapshot_taken(self, snapshot: GroupSnapshot) -> None:
        self._kept.rebase(snapshot.state)
        if self._opening.snapshot_interval_steps:
            super()._snapshot_taken(snapshot)

    def _finish(self, answer: Answer) -> None:
        if answer.error is None:
            self._seen += answer.steps
        else:
            self._kept.failed(answer)
            self._gone -= answer.steps
        if not answer.internal:
            self._failure = answer.error or self._failure
            self._answered += 1
            super()._finish(answer)
        elif answer.error is not None and not answer.for_snapshot:
            self.give_up(StreamLost(f"the group cannot be resumed: {answer.error.message}", reason=answer.error.reason))
        elif answer.error is not None:
            self._interval.again()
        elif answer.for_snapshot:
            assert isinstance(answer.result, State)
            self._kept.rebase(answer.result)

    def _prepare_return(self) -> None:
        seen = self.failures - self._failures_before
        for call in self._kept.unanswered():  # those that were sent behind one that failed fail as well
            if call.message.failures < seen and self._failure is not None and self._due:
                self._fail_next(copy.copy(self._failure))  # each copy gets its own traceback
        self._failures_before = self.failures
        self._granted = self._room.sent
        self._begun = self._seen = self._gone = self._kept.clock
        calls = self._kept.restart()
        begin = [] if self._kept.state is None else self._beginning(self._kept.state)
        self._kept.unsent.extendleft(reversed(begin))
        self._due = collections.deque(call.due for call in [*begin, *calls])
        for call in calls:
            call.message.failures = 0
        self._room.calls = len(self._due)
        self._interval.restart()
        self._forget_blocks()

    @staticmethod
    def _beginning(state: State) -> list[KeptCall]:
        """Returns the calls that set the states to begin with."""
        parts = {name: part for name in ("hidden", "cell", "inputs") if (part := getattr(state, name)) is not None}
        calls = []
        for where, part in state_blocks(parts, None):
            answer = Answer(internal=True)
            states = inference_service_pb2.StreamStates(streams=stream_set(where), state=part)
            calls.append(KeptCall(GroupRequest(set=states), None, None, answer, answer, begins=True))
        return calls

    def _cancelling(self) -> GroupEntry:
        return GroupEntry(self, GroupRequest(cancel=True))

    def _stop(self) -> None:
        super()._stop()
        self._kept.clear()
        self._interval.end()

    def _send_call(
        self, message: GroupRequest, answer: Answer, frames: Array | None, streams: Array | None
    ) -> list[GroupEntry]:
        call = KeptCall(message, frames, streams, answer, answer)
        self._kept.add(call)
        if len(self._kept.unsent) == 1 and self._may_send(call):  # as usual
            return self._send_next(budgeted=True)
        self._share.give_back(call.frames_bytes)  # it counts as kept
        self._send_kept()
        return []

    def _may_send(self, call: KeptCall) -> bool:
        """Returns whether the server has room for a call."""
        if self.lost is not None or len(self._due) - len(self._kept.unsent) > max(self.window, LEAST_CALLS):
            return False
        ahead, steps = self._gone - self._begun - self.acknowledged, call.answer.steps
        return not steps or not ahead or ahead + steps <= self.window

    def _send_kept(self) -> None:
        """Sends the calls that are kept and were not sent on this call, as far as the window has room."""
        while self._kept.unsent and self._may_send(self._kept.unsent[0]):
            self._send_next(budgeted=False)

    def _send_next(self, *, budgeted: bool) -> list[GroupEntry]:
        """Sends the next call. budgeted: whether its frames count against the budget until they are written."""
        call = self._kept.unsent.popleft()
        self._kept.sent(call)
        self._gone += call.answer.steps
        sent = list(entries(self, call.message, call.frames))
        for entry in sent:
            if not budgeted:
                entry.held_bytes = 0
            self._queue.put(entry)
        if not (call.message.end or call.begins) and self._interval.sent(call.size):
            self._ask_for_snapshot(call.message.failures)
        return sent

    def _ask_for_snapshot(self, failures: int) -> None:
        """Asks for all states behind the calls that were sent."""
        answer = Answer(asks=self.count, internal=True, for_snapshot=True)
        message = GroupRequest(get=stream_set(None), failures=failures)
        self._due.insert(len(self._due) - len(self._kept.unsent), answer)
        self._room.calls += 1
        self._kept.sent(KeptCall(message, None, None, answer, answer))
        self._queue.put(GroupEntry(self, message))
