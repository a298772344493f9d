"""The answers to the calls of a stream group, in the order of the calls: outputs in blocks, states, failures."""

import collections
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from google.rpc import status_pb2

from seqloom_server.engine.core.sequence import Array, OutputSpec, SliceResult, StateArrays
from seqloom_server.engine.core.stream_group import Index
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc.calls import converters
from seqloom_server.rpc.inference.group_outgoing import Block, GroupOutgoing, StateBlock
from seqloom_server.rpc.inference.stream_session import MAX_ENTRY_BYTES

FIRST_STEP_BYTES = 8  # of each stream of a call, charged with its outputs

Failure = tuple[int, status_pb2.Status]  # its number among the group's


@dataclass(slots=True)
class Frames:
    """Frames of the streams of a call, `steps` of each; or of some of them, where these run before the others.

    streams: how many. numbers: which, None for all. first_step: that of every one of the call's streams, or int64 [w];
    on the call's first frames. stream: the position of the first of them among the call's. last: whether they are the
    call's last. done: steps that are answered.
    """

    streams: int
    steps: int
    numbers: Index | None
    first_step: int | Index
    stream: int = 0
    last: bool = True
    done: int = 0

    def split(self, first: int) -> "Frames":
        """Returns what is due of the first few streams; the others stay."""
        numbers = np.arange(self.streams) if self.numbers is None else self.numbers
        begin = Frames(first, self.steps, numbers[:first], self.first_step, self.stream, last=False, done=self.done)
        self.stream, self.streams = self.stream + first, self.streams - first
        self.numbers, self.first_step = numbers[first:], 0
        return begin


@dataclass(slots=True)
class States:
    """A question for states. promised: bytes charged for them. snapshot: whether it is the group's own.

    going_away: because the server goes away.
    """

    promised: int = 0
    snapshot: bool = False
    going_away: bool = False


@dataclass(slots=True)
class Changes:
    """States that are replaced, by a call that asks for nothing."""


class StepCounts:
    """The steps of each of n streams; one number as long as all streams have had the same, as mostly."""

    def __init__(self, count: int, begun: int | Index = 0) -> None:
        self._count = count
        self._all = begun if isinstance(begun, int) else 0  # of every stream
        self._more: Index | None = None if isinstance(begun, int) else begun.copy()  # of each, beside these

    def add(self, streams: Index | None, steps: int) -> None:
        """Counts steps of streams, None for all."""
        if streams is None:
            self._all += steps
            return
        if self._more is None:
            self._more = np.zeros(self._count, np.int64)
        self._more[streams] += steps

    def of(self, streams: Index | None) -> int | Index:
        """Returns the steps of streams, None for all: int64 [w], or one number if all of these have as many."""
        if self._more is None:
            return self._all
        steps = self._all + (self._more if streams is None else self._more[streams])
        first = int(steps[0])
        return first if (steps == first).all() else steps

    def each(self) -> Index:
        """Returns the steps of each stream, int64 [n]."""
        return np.full(self._count, self._all) if self._more is None else self._all + self._more


class GroupAnswers:
    """What is due to the caller of a group of `count` streams.

    outgoing: returns a new entry; send: sends one. answered: called with the steps of a call once it is answered.
    promised: bytes charged for outputs that have not been computed, of `step_bytes` a step. begun: the steps of every
    stream, or int64 [n], before the first.
    """

    def __init__(
        self,
        spec: ModelSpec,
        output: OutputSpec,
        count: int,
        step_bytes: int,
        outgoing: Callable[[], GroupOutgoing],
        send: Callable[[GroupOutgoing], None],
        answered: Callable[[int], None],
        begun: int | Index = 0,
    ) -> None:
        self._spec, self._output, self._step_bytes = spec, output, step_bytes
        self._outgoing, self._send, self._answered = outgoing, send, answered
        self._state_bytes = converters.state_bytes(spec)
        self._due: collections.deque[Frames | States | Changes | Failure] = collections.deque()
        self._steps = StepCounts(count, begun)
        self.promised = 0

    @property
    def waiting(self) -> int:
        """The number of answers that are due: one for each part of a call."""
        return len(self._due)

    def expect(self, due: Frames | States | Changes | Failure) -> None:
        """Adds what will be answered next; a failure is sent once it is its turn."""
        self._due.append(due)
        self._send_failures()

    def take(self, result: SliceResult, timing: tuple[float, float]) -> None:
        """Sends what a slice has computed. timing: seconds that the group has waited and computed, for its end."""
        if result.steps or result.answers:
            self._take_outputs(result)
        elif self._due and isinstance(self._due[0], Changes):
            self._due.popleft()
            out = self._outgoing()
            out.done = True
            self._send(out)
            self._send_failures()
        if result.states is not None:
            due = self._due.popleft()
            assert isinstance(due, States)
            steps = self._steps.each() if due.snapshot else None
            kind = "snapshot" if due.snapshot else "states"
            self._send_states(kind, result.states, due.promised, steps=steps, going_away=due.going_away)
        if result.final_state is not None:
            self._send_states("ended", result.final_state, timing=timing)
        self._send_failures()

    def _take_outputs(self, result: SliceResult) -> None:
        """Sends the outputs of the next calls, of which a slice may have run several, or parts."""
        at = 0
        while True:
            due = self._due[0]
            assert isinstance(due, Frames)
            if result.steps and result.streams < due.streams:  # the slice could not hold them all
                due = due.split(result.streams)
                self._due.appendleft(due)
            steps = min(due.steps - due.done, result.steps - at)
            self._send_blocks(due, result, at, steps)
            at, due.done = at + steps, due.done + steps
            if due.done == due.steps:
                self._due.popleft()
                self._steps.add(due.numbers, due.steps)
                if due.last:
                    self._answered(due.steps)
                    self._send_failures()
            if at == result.steps:
                return

    def _send_blocks(self, due: Frames, result: SliceResult, at: int, steps: int) -> None:
        """Sends the outputs of `steps` steps from `at` on, in entries that are not too large."""
        if result.steps:
            values, labels = (
                None if rows is None else rows.reshape(due.streams, result.steps, *rows.shape[1:])[:, at : at + steps]
                for rows in (result.values, result.labels)
            )
        else:
            values, labels = converters.empty_outputs(self._output, self._spec)
        most = max(1, MAX_ENTRY_BYTES // self._step_bytes)  # rows of an entry
        rows_across, rows_deep = max(1, most // steps) if steps else due.streams, min(most, max(1, steps))
        for stream in range(0, due.streams, rows_across):
            streams = min(rows_across, due.streams - stream)
            for step in range(0, max(1, steps), rows_deep):
                deep = min(rows_deep, steps - step)
                where = np.s_[stream : stream + streams, step : step + deep]
                out = self._outgoing()
                place = due.stream + stream, due.done + step, streams, deep
                out.outputs = Block(
                    None if due.last and place == (0, 0, due.streams, due.steps) else place,
                    _flat(values, where) if result.steps else values,
                    _flat(labels, where) if result.steps else labels,
                    due.first_step,
                )
                due.first_step = 0
                first = FIRST_STEP_BYTES if due.done + step == 0 else 0
                out.promised = streams * (deep * self._step_bytes + first)
                self.promised -= out.promised
                self._send(out)

    def _send_states(
        self,
        kind: str,
        states: StateArrays,
        promised: int = 0,
        *,
        steps: Index | None = None,
        timing: tuple[float, float] | None = None,
        going_away: bool = False,
    ) -> None:
        """Sends states, [rows, w, width] per part, in entries that are not too large."""
        width = states[0].shape[1]
        most = max(1, MAX_ENTRY_BYTES // self._state_bytes)
        for stream in range(0, width, most):
            out = self._outgoing()
            block = tuple(part[:, stream : stream + most] for part in states)
            out.states = kind, StateBlock(stream, block, self._spec.state_parts)
            out.steps, out.timing = steps, timing
            out.going_away = going_away and stream + most >= width
            steps = timing = None
            if promised:
                out.promised = self._state_bytes * block[0].shape[1]
                self.promised -= out.promised
            self._send(out)

    def _send_failures(self) -> None:
        while self._due and isinstance(self._due[0], tuple):
            out = self._outgoing()
            out.failure = self._due[0]
            self._due.popleft()
            self._send(out)


def _flat(rows: Array | None, where: tuple[slice, slice]) -> Array | None:
    """Returns a block of [w, k, ...] with one row for each step of each stream."""
    if rows is None:
        return None
    block = rows[where]
    return block.reshape(-1, *block.shape[2:])
