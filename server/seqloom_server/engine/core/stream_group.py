"""A group of live streams that are one sequence of the engine: n states, advanced together or some at a time.

A group is one item of the queue and one member of a slice, however many streams it has: whatever is done once a stream
is done by arrays.
"""

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Index = npt.NDArray[np.int64]
States = tuple[Array, ...]  # one [rows, n, width] per part of the model's state


@dataclass(frozen=True, slots=True)
class GroupWork:
    """What one chunk does with the streams of its group, in this order: set, reset, run its frames.

    streams: int64 [w], the streams that its frames are of, each once; None for all. set: streams (None for all) and
    their states [rows, w, width] per part. reset: the streams whose states become zero, None for none. asks: whether
    the states of `streams` are wanted, by a chunk without frames.
    """

    streams: Index | None = None
    set: tuple[Index | None, States] | None = None
    reset: Index | None = None
    asks: bool = False

    @property
    def changes(self) -> bool:
        """Whether states are replaced before its frames."""
        return self.set is not None or self.reset is not None

    @property
    def change_bytes(self) -> int:
        """The bytes of the states that it sets, and of the numbers of the streams whose states it replaces."""
        size = 0 if self.reset is None else self.reset.nbytes
        if self.set is not None:
            streams, states = self.set
            size += (0 if streams is None else streams.nbytes) + sum([part.nbytes for part in states])
        return size

    def continues(self, other: "GroupWork") -> bool:
        """Whether its frames can run as the next steps of the same streams as the other's."""
        if self.changes or self.asks or other.asks:
            return False
        if self.streams is other.streams:
            return True
        return self.streams is not None and other.streams is not None and np.array_equal(self.streams, other.streams)

    def split(self, streams: Index, first: int) -> "tuple[GroupWork, GroupWork]":
        """Returns the work of the first few of its streams and of the others: together they do what it does.

        streams: int64 [w], its streams also where they are all.
        """
        return GroupWork(streams[:first], self.set, self.reset), GroupWork(streams[first:])


@dataclass(slots=True)
class Beginnings:
    """The states of w streams that do not come from their slots.

    fresh: bool [w]. given: positions among the w of those that begin with a state that was given, int64 [m]; the others
    begin with zeros. states: [rows, m, width] per part, of those; empty for none.
    """

    fresh: npt.NDArray[np.bool_]
    given: Index
    states: States


class StreamGroup:
    """The streams of one group, and which of their states are not in their slots yet. count: n.

    initial: [rows, n, width] per part; None for zeros.
    """

    def __init__(self, count: int, initial: States | None) -> None:
        self.count = count
        self._fresh = np.ones(count, bool)
        self._given = np.full(count, initial is not None)
        self._states = initial
        self._any_fresh = True

    @functools.cached_property
    def numbers(self) -> Index:
        """The numbers of all streams, int64 [n]."""
        return np.arange(self.count)

    def width(self, work: GroupWork) -> int:
        """Returns the number of streams that a chunk runs."""
        return self.count if work.streams is None else len(work.streams)

    def begin(self, work: GroupWork, *, again: bool) -> Beginnings | None:
        """Does what a chunk does before its frames; from then on the streams that it runs have their states in slots.

        again: whether part of its frames has run before. Returns the beginnings of these streams; None if all of them
        continue.
        """
        if not again:
            if work.set is not None:
                self._set(*work.set)
            if work.reset is not None:
                self._fresh[work.reset] = self._any_fresh = True
                self._given[work.reset] = False
        if not self._any_fresh:
            return None
        streams = slice(None) if work.streams is None else work.streams
        fresh = self._fresh[streams].copy()
        if not fresh.any():
            return None
        given = np.flatnonzero(fresh & self._given[streams])
        states: States = ()
        if len(given):
            assert self._states is not None
            which = given if work.streams is None else work.streams[given]
            states = tuple(part[:, which] for part in self._states)
        self._fresh[streams] = self._given[streams] = False
        self._any_fresh = bool(self._fresh.any())
        if not self._given.any():
            self._states = None  # nothing keeps them in memory
        return Beginnings(fresh, given, states)

    def _set(self, streams: Index | None, states: States) -> None:
        where = slice(None) if streams is None else streams
        if streams is None:
            self._states = states
        else:
            if self._states is None:
                self._states = tuple(
                    np.zeros((part.shape[0], self.count, part.shape[2]), part.dtype) for part in states
                )
            elif not all(part.flags.writeable for part in self._states):  # views of a caller's message
                self._states = tuple(part.copy() for part in self._states)
            for part, new in zip(self._states, states, strict=True):
                part[:, streams] = new
        self._fresh[where] = self._given[where] = True
        self._any_fresh = True
