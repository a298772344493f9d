"""How often and when calls are repeated, whatever the order of calls and errors."""

import itertools
import math
import time

import pytest
import seqloom
from hypothesis import given
from hypothesis import strategies as st
from seqloom._retries import DEFAULT_RETRIES, INITIAL_BACKOFF, MAX_BACKOFF, Backoff, backoff_of
from seqloom._retry_budget import RetryBudget

GONE = seqloom.Unavailable("gone")
BUSY = seqloom.Overloaded("busy")

# runs of calls (True) and of wishes to repeat one (False), so that the bucket gets empty and full
histories = st.lists(st.tuples(st.booleans(), st.integers(1, 120)), max_size=12).map(
    lambda runs: [kind for kind, length in runs for _ in range(length)]
)


def spent():
    budget = RetryBudget()
    while budget.take():
        pass
    return budget


@given(histories)
def test_from_any_moment_on_there_are_at_most_10_repeats_and_one_more_for_10_calls(history):
    budget, calls, repeats = RetryBudget(), 0, 0
    over = [0]  # ten times the repeats less the calls, as it goes
    for is_call in history:
        if is_call:
            budget.add_call()
            calls += 1
        elif budget.take():
            repeats += 1
        over.append(10 * repeats - calls)
    lowest = itertools.accumulate(over, min)
    assert max(now - then for now, then in zip(over, lowest, strict=True)) <= 100
    assert repeats <= 10 + calls / 10


@given(st.integers(0, 400))
def test_a_client_that_repeats_all_it_may_gets_10_and_then_one_for_10_calls(calls):
    budget = RetryBudget()
    granted = sum(budget.take() for _ in range(20))
    assert granted == 10
    for _ in range(calls):
        budget.add_call()
        granted += budget.take()
    assert granted == 10 + calls // 10


def test_pauses_grow_and_end_with_the_retries_or_at_the_deadline():
    backoff = Backoff(8, math.inf, RetryBudget())
    for n in range(8):
        longest = min(MAX_BACKOFF, INITIAL_BACKOFF * 2**n)
        assert longest / 2 <= backoff.delay(GONE) <= longest
    with pytest.raises(seqloom.Unavailable):
        backoff.delay(GONE)
    with pytest.raises(seqloom.Unavailable):
        Backoff(8, time.monotonic(), RetryBudget()).delay(GONE)


@given(st.lists(st.booleans(), max_size=40))
def test_by_default_an_unavailable_server_is_waited_for_and_an_overloaded_one_is_asked_5_times_more(gone):
    """Whatever comes in which order."""
    backoff, refused = backoff_of(None, math.inf, RetryBudget(), reached=True), 0
    for is_gone in gone:
        if is_gone or refused < DEFAULT_RETRIES:
            assert INITIAL_BACKOFF / 2 <= backoff.delay(GONE if is_gone else BUSY) <= MAX_BACKOFF
        else:
            with pytest.raises(seqloom.Overloaded):
                backoff.delay(BUSY)
        refused += not is_gone


def test_an_unavailable_server_is_waited_for_until_the_timeout_and_not_after_it():
    backoff = backoff_of(None, time.monotonic() + 3600, RetryBudget(), reached=True)
    for _ in range(100):
        backoff.delay(GONE)
    backoff._deadline = time.monotonic() + INITIAL_BACKOFF / 2
    with pytest.raises(seqloom.Unavailable):
        backoff.delay(GONE)


def test_a_client_that_was_never_answered_does_not_wait_long_for_what_may_be_a_wrong_address():
    backoff = backoff_of(None, math.inf, RetryBudget(), reached=False)
    for _ in range(DEFAULT_RETRIES):
        backoff.delay(GONE)
    with pytest.raises(seqloom.Unavailable):
        backoff.delay(GONE)


@given(st.integers(0, 4), st.lists(st.booleans(), max_size=8))
def test_retries_that_are_set_count_every_repeat(retries, gone):
    backoff = backoff_of(retries, math.inf, RetryBudget(), reached=True)
    for number, is_gone in enumerate(gone):
        error = GONE if is_gone else BUSY
        if number < retries:
            backoff.delay(error)
        else:
            with pytest.raises(type(error)):
                backoff.delay(error)


@given(st.integers(0, 6), st.floats(0, 1e4), st.floats(0, 1e4) | st.just(math.inf))
def test_after_overloaded_a_call_comes_no_sooner_than_told_and_not_after_its_deadline(failed, retry_after, seconds):
    backoff = Backoff(7, math.inf, RetryBudget())
    for _ in range(failed):
        backoff.delay(GONE)
    now = time.monotonic()
    backoff._deadline = now + seconds
    try:
        delay = backoff.delay(seqloom.Overloaded("busy", retry_after=retry_after))
    except seqloom.Overloaded:
        assert seconds <= max(1.25 * retry_after, MAX_BACKOFF) + 60  # a minute for a machine that stalls
    else:
        assert retry_after <= delay <= max(1.25 * retry_after, MAX_BACKOFF)
        assert now + delay < backoff._deadline


def test_callers_that_are_told_the_same_do_not_come_together():
    told = seqloom.Overloaded("busy", retry_after=8.0)
    delays = [Backoff(1, math.inf, RetryBudget()).delay(told) for _ in range(100)]
    assert max(delays) - min(delays) > 1.0


def test_a_spent_budget_ends_the_repeats_after_overloaded_alone():
    budget = spent()
    with pytest.raises(seqloom.Overloaded) as caught:
        Backoff(8, math.inf, budget).delay(BUSY)
    assert caught.value is BUSY
    assert Backoff(8, math.inf, budget).delay(GONE) <= INITIAL_BACKOFF


def test_calls_that_are_not_repeated_take_nothing_of_the_budget():
    budget = RetryBudget()
    for backoff in (Backoff(0, math.inf, budget), Backoff(8, time.monotonic(), budget)):
        for _ in range(20):
            with pytest.raises(seqloom.Overloaded):
                backoff.delay(BUSY)
    for _ in range(20):
        Backoff(8, math.inf, budget).delay(GONE)
    assert sum(budget.take() for _ in range(20)) == 10


def test_a_call_that_the_client_refused_is_not_repeated_and_costs_nothing_even_as_a_repeat():
    unsent = seqloom.Overloaded("busy", sent=False)
    for before in ([], [BUSY], [BUSY, GONE], [BUSY, BUSY]):
        budget = RetryBudget()
        backoff = Backoff(8, math.inf, budget)
        for error in before:
            backoff.delay(error)
        with pytest.raises(seqloom.Overloaded) as caught:
            backoff.delay(unsent)
        assert caught.value is unsent
        kept = before[-1:] == [BUSY]  # the last attempt was a repeat of the budget
        assert sum(budget.take() for _ in range(20)) == 10 - before.count(BUSY) + kept


def test_a_call_that_must_be_done_goes_on_for_ever_and_slowly_if_the_budget_is_spent():
    backoff = Backoff(None, math.inf, spent())
    for _ in range(3000):  # 2**1024 is no float
        assert MAX_BACKOFF / 2 <= backoff.delay(BUSY) <= MAX_BACKOFF
    assert backoff.delay(seqloom.Overloaded("busy", retry_after=7.0)) >= 7.0
    assert Backoff(None, math.inf, RetryBudget()).delay(BUSY) <= INITIAL_BACKOFF
