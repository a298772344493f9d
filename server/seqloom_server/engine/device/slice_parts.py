"""Runs a slice that found no memory in parts: halves, and their halves, until what is left does not fit alone.

Members are parted from each other first, then the steps of one. A slice that found no memory has written no state
(slice_runner.py), so its parts begin where it would have begun.
"""

import collections
import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from seqloom_server.engine.core.sequence import Array, Member, Sequence, Slice, SliceResult
from seqloom_server.engine.device.slice_in_flight import SliceInFlight
from seqloom_server.memory import is_memory_short

log = logging.getLogger(__name__)


@dataclass(slots=True)
class PartsRun:
    """What became of a slice's members. exhausted: sequences of which a part fits by no means. failed: by an error."""

    results: list[tuple[Member, SliceResult]] = field(default_factory=list)
    exhausted: list[Sequence] = field(default_factory=list)
    failed: list[Sequence] = field(default_factory=list)

    @property
    def lost(self) -> set[Sequence]:
        """The sequences that end."""
        return {*self.exhausted, *self.failed}


def run(slice_: Slice, launch: Callable[[Slice], SliceInFlight], hold_state: Callable[[Sequence], None]) -> PartsRun:
    """Runs the halves of a slice for which memory was short, one after the other.

    launch: launches a slice. hold_state: is called with a sequence before its steps are parted, as its state must be
    kept in between.
    """
    done = PartsRun()
    waiting = collections.deque(_halves_or_none(slice_, hold_state, done))
    while waiting:
        part = waiting.popleft()
        sequences = [member.sequence for member in part.members]
        if len(sequences) == 1 and sequences[0] in done.lost:  # earlier steps of it
            continue
        problem = _try(part, launch, done)
        if problem == "short":
            waiting.extendleft(reversed(_halves_or_none(part, hold_state, done)))
        elif problem == "failed":
            done.failed += sequences
    return done


def halves(slice_: Slice) -> list[Slice]:
    """Returns a slice in two parts, to be run in this order; none if it cannot be parted."""
    weights, members = slice_.weights, slice_.members
    if len(members) > 1:
        half = len(members) // 2
        return [Slice.of(weights, members[:half]), Slice.of(weights, members[half:])]
    (member,) = members
    if member.steps < 2 or weights.whole_only:
        return []
    return [Slice.of(weights, [part]) for part in _halved(member)]


def _halves_or_none(slice_: Slice, hold_state: Callable[[Sequence], None], done: PartsRun) -> list[Slice]:
    """Returns the halves; notes the sequence of a slice that has none."""
    parts = [] if slice_.written else halves(slice_)  # what has been written cannot be run again
    if not parts:
        done.exhausted += [member.sequence for member in slice_.members]
    elif len(slice_.members) == 1:
        hold_state(slice_.members[0].sequence)
    return parts


def _try(part: Slice, launch: Callable[[Slice], SliceInFlight], done: PartsRun) -> str:
    """Runs a part; returns "" or what it failed by. The error is not kept, as it holds the memory of the attempt."""
    try:
        done.results += launch(part).finish()
    except Exception as error:
        if is_memory_short(error):
            return "short"
        log.error("a part of a slice, of %d sequences, failed", len(part.members), exc_info=error)
        return "failed"
    return ""


def _halved(member: Member) -> tuple[Member, Member]:
    """Returns the two halves of a member's steps: the first begins as it does, the second ends as it does."""
    half = member.steps // 2
    before, after = _cut(member.parts, half)
    first = dataclasses.replace(member, parts=before, steps=half, final=False, snapshot=False, asks=False)
    second = dataclasses.replace(
        member,
        parts=after,
        steps=member.steps - half,
        first_step=member.first_step + first.cells,
        waited=None,
        fresh=False,
        initial_state=None,
        beginnings=None,
    )
    return first, second


def _cut(parts: list[Array], steps: int) -> tuple[list[Array], list[Array]]:
    """Splits frames after so many steps, without a copy."""
    before: list[Array] = []
    for place, part in enumerate(parts):
        if len(part) >= steps:
            rest = [part[steps:]] if len(part) > steps else []
            return [*before, part[:steps]], [*rest, *parts[place + 1 :]]
        before.append(part)
        steps -= len(part)
    raise AssertionError("a member has fewer steps than it says")
