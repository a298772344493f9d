"""Splits steps off a sequence's queued chunks, to run them in one slice."""

from seqloom_server.engine.core.sequence import Chunk, Member, Sequence


def runnable(sequence: Sequence, most: int) -> int:
    """Returns the steps that may run in one slice: up to a reset, a chunk of 0 steps or a snapshot; at most `most`.

    0 if the first chunk has 0 steps.
    """
    steps = 0
    for chunk in sequence.chunks:
        rows = len(chunk.rows) - chunk.taken
        if steps and (chunk.reset or not rows):
            break
        steps += rows
        if not rows or steps >= most:
            break
    interval = sequence.snapshot_interval
    return min(steps, most, interval - sequence.steps_done % interval if interval else most)


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
        member.final = chunk.last
        if member.steps >= count:
            if sequence.chunks and _is_bare_end(sequence.chunks[0]):
                sequence.chunks.popleft()
                member.final = True
            break
    sequence.waiting_steps -= member.steps
    sequence.steps_done += member.steps
    sequence.queue_seconds += member.waited or 0.0
    sequence.started, sequence.initial_state = True, None
    if sequence.snapshot_interval and member.steps:
        member.snapshot = sequence.steps_done % sequence.snapshot_interval == 0
    return member


def _is_bare_end(chunk: Chunk) -> bool:
    """Returns whether a chunk only ends the sequence, so that it needs no slice of its own."""
    return chunk.last and chunk.silent and not chunk.reset
