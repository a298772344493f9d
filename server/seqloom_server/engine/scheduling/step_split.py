"""Splits steps off a sequence's queued chunks, to run them in one slice, and streams off those of a group."""

import dataclasses

from seqloom_server.engine.core.sequence import Chunk, Member, Sequence
from seqloom_server.engine.core.stream_group import GroupWork


def runnable(sequence: Sequence, most: int) -> int:
    """Returns the steps that may run in one slice: up to a reset, a chunk of 0 steps, a snapshot; at most `most`.

    A snapshot is due, or asked for by a chunk.

    Of a group also up to a chunk of other streams. 0 if the first chunk has 0 steps.
    """
    steps = 0
    work = sequence.chunks[0].work
    for chunk in sequence.chunks:
        rows = len(chunk.rows) - chunk.taken
        if steps and (chunk.reset or not rows or not (work is None or _continues(chunk, work))):
            break
        steps += rows
        if not rows or steps >= most or chunk.asks:
            break
    interval = sequence.snapshot_interval
    return min(steps, most, interval - sequence.steps_done % interval if interval else most)


def narrow(sequence: Sequence, most: int) -> None:
    """Splits the first chunk of a group, if it has more than `most` streams: some run first, the others behind them.

    The parts are about equally wide, so that none is a remainder that a slice is not worth.
    """
    head = sequence.chunks[0]
    if head.width <= most or not len(head.rows):
        return
    assert sequence.group is not None
    assert head.work is not None
    assert not head.work.asks
    parts = -(-head.width // most)
    first = -(-head.width // parts)
    streams = sequence.group.numbers if head.work.streams is None else head.work.streams
    before, behind = head.work.split(streams, first)
    chunks = sequence.chunks
    chunks[0] = dataclasses.replace(head, rows=head.rows[:, first:], work=behind)
    chunks.appendleft(dataclasses.replace(head, rows=head.rows[:, :first], work=before, last=False))


def take(sequence: Sequence, cut: int, now: float) -> Member:
    """Moves up to `cut` of the runnable steps from the sequence's chunks into a member of a slice."""
    head = sequence.chunks[0]
    fresh = not sequence.started or (head.reset and not head.taken)
    member = Member(
        sequence,
        parts=[],
        steps=0,
        first_step=sequence.steps_done,
        waited=None if head.taken else now - head.arrived,
        fresh=fresh,
        initial_state=sequence.initial_state if fresh and not head.reset else None,
        answers=not head.silent,
        final=False,
        snapshot=False,
    )
    if sequence.group is not None:
        assert head.work is not None
        member.fresh, member.width, member.streams = False, head.width, head.work.streams
        member.asks = head.work.asks
        member.change_bytes = 0 if head.taken else head.work.change_bytes
        member.beginnings = sequence.group.begin(head.work, again=head.taken > 0)
    count = runnable(sequence, cut)
    while True:
        chunk = sequence.chunks[0]
        rows = chunk.rows[chunk.taken : chunk.taken + count - member.steps]
        if len(rows):
            member.parts.append(rows)
            member.steps += len(rows)
            chunk.taken += len(rows)
        if chunk.taken < len(chunk.rows):
            break
        sequence.chunks.popleft()
        member.final, member.asks = chunk.last, member.asks or chunk.asks
        if member.steps >= count:
            if sequence.chunks and _joins(sequence.chunks[0], member):
                last = sequence.chunks.popleft()
                member.final = last.last
                member.asks = member.asks or last.asks or (last.work is not None and last.work.asks)
            break
    sequence.waiting_steps -= member.cells
    sequence.steps_done += member.cells
    sequence.queue_seconds += member.waited or 0.0
    sequence.started, sequence.initial_state = True, None
    if sequence.snapshot_interval and member.steps:
        member.snapshot = sequence.steps_done % sequence.snapshot_interval == 0
    return member


def _continues(chunk: Chunk, work: GroupWork) -> bool:
    return chunk.work is work or (chunk.work is not None and chunk.work.continues(work))


def _joins(chunk: Chunk, member: Member) -> bool:
    """Returns whether a chunk without steps needs no slice of its own: it ends the sequence, or asks for its states."""
    if not chunk.silent or chunk.reset or member.final:
        return False
    if chunk.work is None:
        return chunk.last if member.asks else chunk.last or chunk.asks
    if chunk.work.changes or (chunk.work.asks and member.asks):
        return False
    return member.streams is None and chunk.work.streams is None
