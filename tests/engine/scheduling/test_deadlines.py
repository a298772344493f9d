"""Deadlines: earliest first, each once, and nothing is kept alive for one that no longer matters."""

import gc
import weakref

from helpers.simulated_device import KnownWeights, make_sequence
from hypothesis import given
from hypothesis import strategies as st
from seqloom_server.engine.scheduling.deadlines import Deadlines


def watch(deadlines, *times):
    sequences = [make_sequence(KnownWeights(), deadline=time) for time in times]
    for sequence in sequences:
        deadlines.watch(sequence)
    return sequences


@given(st.lists(st.tuples(st.floats(0, 10), st.booleans())), st.lists(st.floats(0, 10)))
def test_each_that_is_still_watched_passes_once_and_in_order(cases, times):
    deadlines = Deadlines()
    sequences = watch(deadlines, *(time for time, _ in cases))
    for sequence, (_, forgotten) in zip(sequences, cases, strict=True):
        if forgotten:
            deadlines.forget(sequence)
    waiting = [sequence for sequence, (_, forgotten) in zip(sequences, cases, strict=True) if not forgotten]
    for now in sorted(times):
        assert deadlines.next() == min((sequence.deadline for sequence in waiting), default=None)
        passed = deadlines.passed(now)
        assert {*passed} == {sequence for sequence in waiting if sequence.deadline <= now}
        assert [sequence.deadline for sequence in passed] == sorted(sequence.deadline for sequence in passed)
        waiting = [sequence for sequence in waiting if sequence.deadline > now]
        assert len(deadlines) == len(waiting)


def test_watching_twice_is_watching_once():
    deadlines = Deadlines()
    (sequence,) = watch(deadlines, 1.0)
    deadlines.watch(sequence)
    assert deadlines.passed(2.0) == [sequence]
    assert deadlines.passed(2.0) == []


def test_one_without_a_deadline_is_not_watched():
    deadlines = Deadlines()
    watch(deadlines, None)
    assert len(deadlines) == 0
    assert deadlines.next() is None


def test_a_forgotten_sequence_is_not_kept_alive():
    deadlines = Deadlines()
    (sequence,) = watch(deadlines, 1e9)
    deadlines.forget(sequence)
    alive = weakref.ref(sequence.weights)
    del sequence
    gc.collect()
    assert alive() is None


def test_forgotten_ones_do_not_pile_up():
    deadlines = Deadlines()
    for _ in range(10_000):
        (sequence,) = watch(deadlines, 1e9)
        deadlines.forget(sequence)
    assert len(deadlines._heap) <= 65
