"""The client's side of a stream group: its calls in the order sent, their answers, and what both hold of the budget."""

import collections

import numpy as np

from seqloom import tensors
from seqloom._groups.group_answers import Answer, StateBlocks
from seqloom._groups.group_request import GroupEntry, entries, state_blocks, stream_set
from seqloom._groups.group_room import GroupRoom
from seqloom._streaming.session import EntryQueue
from seqloom._streaming.shared_call import OpensGroup
from seqloom._streaming.stream_budget import CHUNK_BYTES, BudgetShare, StreamBudget
from seqloom.errors import DeadlineExceeded, InvalidArgument, SeqloomError, from_status, with_argument_names
from seqloom.tensors import Array
from seqloom.types import GroupSnapshot, Timing
from seqloom.v1 import inference_service_pb2

GroupRequest = inference_service_pb2.GroupRequest


class GroupSession(OpensGroup):
    """A group of `count` streams.

    failures: those of its calls that it has seen. step_bytes: of the outputs of one step of one stream.
    """

    def __init__(self, queue: EntryQueue, number: int, count: int, step_bytes: int, budget: StreamBudget) -> None:
        super().__init__(queue, number, window=1)
        self.count = count
        self.failures = 0
        self._failures_before = 0  # on calls before this one
        self.snapshot: GroupSnapshot | None = None
        self._step_bytes = step_bytes
        self._share = BudgetShare(budget)
        self._room = GroupRoom(self, self._share)
        self._due: collections.deque[Answer] = collections.deque()  # not whole
        self._whole: collections.deque[Answer] = collections.deque()  # of send(), until they are received
        self._resets: Array | None = None  # bool [n], before the next call
        self._final_states = StateBlocks(count)
        self._snapshot_steps: Array | None = None
        self._snapshot_states = StateBlocks(count)
        self._end: Answer | None = None  # of the call that ends it

    @property
    def received(self) -> int:
        """Steps of calls whose outputs the caller has."""
        return self._room.received

    @property
    def acknowledged(self) -> int:
        """The same, as the server is told."""
        return self._room.received

    @property
    def lost(self) -> SeqloomError | None:
        """Why it is on no call at present, if it is to be resumed; None while it is."""
        return None

    def can_keep(self, size: int) -> bool:
        """Returns whether so many bytes may be kept for a resumption."""
        return True

    @property
    def has_pending(self) -> bool:
        """Whether answers have not come, or have not been received."""
        return bool(self._due or self._whole)

    @property
    def pending_since(self) -> float | None:
        """When the first call that is not answered was sent; None if there is none."""
        return self._due[0].since if self._due else None

    @property
    def ready(self) -> bool:
        """Whether the answer of a call of send() can be received."""
        return bool(self._whole) and self._whole[0].ready

    @property
    def sends(self) -> bool:
        """Whether calls of send() have not been received."""
        return bool(self._whole)

    def open(self, message: inference_service_pb2.OpenGroup, deadline: float) -> None:
        """Opens the group, unless the deadline passes before it can be sent."""
        self._queue.put(GroupEntry(self, GroupRequest(open=message), deadline=deadline))

    def reset(self, streams: Array | None) -> None:
        """Lets states be zero before the next call."""
        self.check_open()
        self._reset_before_next(streams)

    def _reset_before_next(self, streams: Array | None) -> None:
        """Does so also while the group ends, as the end may fail."""
        if self._resets is None:
            self._resets = np.zeros(self.count, bool)
        self._resets[slice(None) if streams is None else streams] = True

    async def send(self, frames: Array, streams: Array | None, deadline: float, *, kept: bool) -> Answer:
        """Sends frames, [w, k, D], once the window and the budget have room; returns the answer that is due.

        kept: whether it is for receive(). The frames must not change until they are written. Raises DeadlineExceeded.
        """
        width, steps = frames.shape[:2]
        size = frames.nbytes + CHUNK_BYTES + width * steps * self._step_bytes
        await self._room.take(steps, size, deadline)
        answer = Answer(width, steps, cost=size - frames.nbytes)
        message = GroupRequest()
        if streams is not None:
            tensors.encode_into(streams, message.streams)
        sent = self._put(message, answer, frames, streams)
        if kept:
            self._whole.append(answer)
        else:
            answer.entries = sent
        return answer

    async def ask(self, streams: Array | None, deadline: float) -> Answer:
        """Asks for states; returns the answer that is due. Raises DeadlineExceeded."""
        await self._room.wait_for_call(deadline)
        answer = Answer(asks=self.count if streams is None else len(streams))
        self._put(GroupRequest(get=stream_set(streams)), answer)
        return answer

    async def set(self, parts: dict[str, Array], streams: Array | None, deadline: float) -> list[Answer]:
        """Replaces states, [rows, w, width] per part, by as many calls as they need; returns the answers due.

        The numbers must be such as the server takes: some calls may run before another one fails. Raises
        DeadlineExceeded.
        """
        answers = []
        failures = self.failures  # what is sent behind one that it has not seen must not run
        for where, part in state_blocks(parts, streams):
            await self._room.wait_for_call(deadline)
            states = inference_service_pb2.StreamStates(streams=stream_set(where), state=part)
            void = self._take_resets(where)
            answer = Answer()
            self._put(GroupRequest(set=states), answer, failures=failures)
            if len(void):
                answer.resets = void if answer.resets is None else np.union1d(answer.resets, void)
            answers.append(answer)
        return answers

    async def begin_with(self, parts: dict[str, Array], deadline: float) -> None:
        """Sets the states that the streams begin with, [rows, n, width] per part. Raises the server's errors."""
        for answer in await self.set(parts, None, deadline):
            try:
                await self.wait(lambda answer=answer: answer.ready, deadline)  # type: ignore[misc]
            except TimeoutError:
                raise DeadlineExceeded("the server did not respond before the timeout", reason="TIMEOUT") from None
            if answer.error is not None:
                raise answer.error

    def end(self) -> Answer:
        """Ends the group after all calls that were sent; returns the answer that is due, always the same.

        If a call before it fails, so does it, and the group goes on.
        """
        if self._end is None:
            self._end = Answer()
            if self.failure is None:
                self._put(GroupRequest(end=True), self._end)
                self.ending = True
        return self._end

    def receive(self) -> Answer:
        """Removes the next answer of send(), which must be ready."""
        answer = self._whole.popleft()
        self.count_received(answer)
        return answer

    def count_received(self, answer: Answer) -> None:
        """Counts an answer as received, and frees what it held of the budget."""
        if answer.error is None:
            self._room.received += answer.steps
        self._share.give_back(answer.cost)
        answer.cost = 0
        self.notify()

    def abandon(self, answer: Answer) -> None:
        """Forgets an answer that nobody waits for any more; it counts as received when it comes."""
        if answer.ready:
            self.count_received(answer)
        else:
            answer.abandoned = True
            for entry in answer.entries:
                entry.keep()

    def cancel(self, error: SeqloomError) -> None:
        """Cancels the group, unless it has ended. Answers that are ready can still be received, and hold nothing."""
        if not self.ended:
            self._queue.put(GroupEntry(self, GroupRequest(cancel=True)))
            self.fail(error)
        for answer in self._whole:
            self._share.give_back(answer.cost)
            answer.cost = 0

    def release_budget(self, size: int) -> None:
        """Returns bytes to the budget that were taken for an entry."""
        self._share.give_back(size)

    def take(self, entry: inference_service_pb2.GroupResponse) -> None:
        """Handles a response of the server for this group."""
        if entry.HasField("error"):
            self.fail(with_argument_names(from_status(entry.error), "frames"))
            return
        if entry.HasField("opened"):
            self._take_opened(entry.opened)
        if entry.HasField("outputs"):
            self._due[0].take_outputs(entry.outputs)
        if entry.HasField("states"):
            self._due[0].take_states(entry.states)
        if entry.done:
            self._due[0].ready = True
        if entry.HasField("failure"):
            self._take_failure(entry.failure)
        elif self._due and self._due[0].ready:
            self._finish(self._next_due())
        if entry.HasField("snapshot"):
            self._take_snapshot(entry.snapshot)
        if entry.HasField("ended"):
            self._take_end(entry.ended)
        self.notify()

    def _take_opened(self, opened: inference_service_pb2.SessionOpened) -> None:
        self.weights_version, self.window = opened.weights_version, opened.window_steps

    def _put(
        self,
        message: GroupRequest,
        answer: Answer,
        frames: Array | None = None,
        streams: Array | None = None,
        *,
        failures: int | None = None,
    ) -> list[GroupEntry]:
        """Sends a call, with the resets that are due before it; returns its entries.

        failures: that its caller has seen, None for all.
        """
        if self._resets is not None and self._resets.any():
            answer.resets = np.flatnonzero(self._resets).astype(np.int32)
            message.reset.CopyFrom(stream_set(None if len(answer.resets) == self.count else answer.resets))
        self._resets = None
        message.failures = max(0, (self.failures if failures is None else failures) - self._failures_before)
        self._due.append(answer)
        self._room.calls += 1
        return self._send_call(message, answer, frames, streams)

    def _send_call(
        self, message: GroupRequest, answer: Answer, frames: Array | None, streams: Array | None
    ) -> list[GroupEntry]:
        sent = list(entries(self, message, frames))
        for entry in sent:
            self._queue.put(entry)
        return sent

    def _take_resets(self, streams: Array | None) -> Array:
        """Forgets the resets that are due of some streams, None for all; returns which these were."""
        due = np.zeros(self.count, bool)
        if self._resets is not None:
            where = slice(None) if streams is None else streams
            due[where] = self._resets[where]
            self._resets[where] = False
        return np.flatnonzero(due)

    def _take_failure(self, failure: inference_service_pb2.GroupFailure) -> None:
        self.failures = max(self.failures, self._failures_before + failure.number)
        self._fail_next(with_argument_names(from_status(failure.error), "frames"))

    def _fail_next(self, error: SeqloomError) -> None:
        """Fails the next call. What it would have reset is reset before a later one."""
        answer = self._next_due()
        self._room.sent -= answer.steps
        if answer.resets is not None:
            self._reset_before_next(answer.resets)
        if answer is self._end:
            self._end, self.ending = None, False
        answer.fail(error)
        self._finish(answer)

    def _next_due(self) -> Answer:
        """Removes the call that is answered."""
        self._room.calls -= 1
        return self._due.popleft()

    def _finish(self, answer: Answer) -> None:
        if answer.abandoned:
            self.count_received(answer)

    def _take_snapshot(self, snapshot: inference_service_pb2.GroupSnapshot) -> None:
        if snapshot.HasField("steps"):
            self._snapshot_steps, self._snapshot_states = tensors.decode(snapshot.steps), StateBlocks(self.count)
        state = self._snapshot_states.take(snapshot.states)
        if state is not None and self._snapshot_steps is not None:
            self._snapshot_taken(GroupSnapshot(self._snapshot_steps, state))

    def _snapshot_taken(self, snapshot: GroupSnapshot) -> None:
        self.snapshot = snapshot

    def _forget_blocks(self) -> None:
        """Forgets blocks of states that have come: all will come again."""
        self._final_states, self._snapshot_states = StateBlocks(self.count), StateBlocks(self.count)
        self._snapshot_steps = None

    def _take_end(self, ended: inference_service_pb2.GroupEnded) -> None:
        if ended.HasField("timing"):
            self.timing = Timing(ended.timing.queue_seconds, ended.timing.compute_seconds)
        self.final_state = self._final_states.take(ended.states)
        if self.final_state is not None:
            self._next_due().ready = True

    def check_open(self) -> None:
        """Raises the group's failure, or InvalidArgument once it is finished."""
        if self.failure is not None:
            raise self.failure
        if self.ending:
            raise InvalidArgument("the group is finished: nothing more can be sent", reason="SESSION_ENDED")

    def _drop_pending(self) -> None:
        for answer in self._due:
            self._share.give_back(answer.cost)
            answer.cost = 0
        self._due.clear()
        self._room.calls = 0
