"""Puts the answers to a group's calls together: blocks of outputs and of states, in the order of the calls."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from seqloom import tensors
from seqloom._groups.group_request import GroupEntry as Entry
from seqloom._messages import arguments
from seqloom.errors import SeqloomError
from seqloom.tensors import Array
from seqloom.types import GroupChunk, State, TopKOutput
from seqloom.v1 import inference_service_pb2


class StateBlocks:
    """States of `count` streams, which come in blocks, in order."""

    def __init__(self, count: int) -> None:
        self._missing = count
        self._blocks: list[State] = []

    def take(self, block: inference_service_pb2.StateBlock) -> State | None:
        """Adds a block; returns all of them, a State of [L, count, H], once it was the last."""
        state = arguments.state_of(block.state)
        self._blocks.append(state)
        self._missing -= state.hidden.shape[1]
        if self._missing:
            return None
        return state if len(self._blocks) == 1 else arguments.joined_states(self._blocks)


@dataclass(slots=True, eq=False)
class Answer:
    """What one call waits for. streams, steps: w and k of its frames, 0 for none; asks: of so many streams' states.

    result: a GroupChunk, a State, or None for a call that asks for nothing. error: of a call that failed. ready:
    whether it has come whole. resets: of the call, which has not happened if it failed. cost: bytes that it holds of
    the stream budget. internal: whether no caller sees it, as the group asked by itself: for_snapshot, or for states
    that were lost. since: when it was sent.
    """

    streams: int = 0
    steps: int = 0
    asks: int = 0
    resets: Array | None = None
    cost: int = 0
    abandoned: bool = False  # nobody waits for it
    internal: bool = False
    for_snapshot: bool = False
    entries: Sequence[Entry] = ()  # that carry its frames, where these are the caller's own
    result: GroupChunk | State | None = None
    error: SeqloomError | None = None
    ready: bool = False
    since: float = field(default_factory=time.monotonic)
    _first_step: Array | None = None
    _values: Array | None = None
    _labels: Array | None = None
    _come: int = 0  # rows
    _states: StateBlocks | None = None

    def take_outputs(self, message: inference_service_pb2.GroupOutputs) -> None:
        """Adds a block of outputs."""
        outputs = message.outputs
        place = message.place if message.HasField("place") else None
        if message.HasField("first_steps"):
            self._first_step = tensors.decode(message.first_steps)
        elif self._first_step is None:
            self._first_step = np.full(self.streams, message.first_step, np.int64)
        values = tensors.decode(outputs.values) if outputs.HasField("values") else None
        labels = tensors.decode(outputs.labels) if outputs.HasField("labels") else None
        self._values = self._placed(self._values, values, place)
        self._labels = self._placed(self._labels, labels, place)
        self._come += self.streams * self.steps if place is None else place.streams * place.steps
        if self._come == self.streams * self.steps:
            self.result = GroupChunk(self._first_step, self._outputs())
            self._values = self._labels = None
            self.ready = True

    def take_states(self, block: inference_service_pb2.StateBlock) -> None:
        """Adds a block of states."""
        if self._states is None:
            self._states = StateBlocks(self.asks)
        self.result = self._states.take(block)
        self.ready = self.result is not None

    def restart(self) -> None:
        """Forgets the blocks that have come: all will come again."""
        self._first_step = self._values = self._labels = self._states = None
        self._come = 0

    def fail(self, error: SeqloomError) -> None:
        """Ends the call with an error."""
        self.error, self.ready = error, True
        self._values = self._labels = None

    def _placed(
        self, whole: Array | None, rows: Array | None, place: inference_service_pb2.GroupBlock | None
    ) -> Array | None:
        """Returns all outputs, [w, k, ...], with a block in its place. place: None if the rows are all of them."""
        if rows is None:
            return whole
        if place is None:
            return rows.reshape(self.streams, self.steps, *rows.shape[1:])  # a view on the message
        if whole is None:
            whole = np.empty((self.streams, self.steps, *rows.shape[1:]), rows.dtype)
        block = rows.reshape(place.streams, place.steps, *rows.shape[1:])
        whole[place.stream : place.stream + place.streams, place.step : place.step + place.steps] = block
        return whole

    def _outputs(self) -> Array | TopKOutput:
        if self._values is not None and self._labels is not None:
            return TopKOutput(self._labels, self._values)
        outputs = self._values if self._labels is None else self._labels
        assert outputs is not None
        return outputs
