"""Calls that do not wait for each other: what is made of what became of them; they are sent whatever happens."""

import asyncio
import dataclasses

import numpy as np
import pytest

from benchmarks.loads import open_loop
from benchmarks.loads.open_loop import FAILED, GOOD, LATE, REFUSED, UNCOUNTED, Calls


def calls(*each: tuple[float, str, float]) -> Calls:
    """each: when it was sent, what became of it, and after how long; 10 steps, sent 2 ms late."""
    gone = Calls()
    for sent, told, took in each:
        gone.add(sent, 0.002, told, took, 10)
    return gone


def test_only_calls_that_were_sent_while_it_counts_are_counted():
    gone = calls((0.9, GOOD, 0.1), (1.0, GOOD, 0.1), (2.9, REFUSED, 0.01), (3.0, REFUSED, 0.01))
    result = open_loop.summary(gone, 2.0)
    assert result["offered_per_second"] == 1.0
    assert result["good_per_second"] == result["refused_per_second"] == 0.5
    assert result["good_of_offered"] == 0.5
    assert result["p50_ms"] == pytest.approx(100)
    assert result["refused_p99_ms"] == pytest.approx(10)
    assert result["sent_late_p99_ms"] == pytest.approx(2)


def test_answers_after_the_timeout_are_lost_like_errors():
    gone = calls((1.0, GOOD, 1.01), (1.1, LATE, 1.0), (1.2, FAILED, 0.1), (1.3, GOOD, 0.99))
    result = open_loop.summary(gone, 1.0)
    assert (result["good_per_second"], result["lost_per_second"]) == (1, 3)


def test_delays_of_nothing_are_left_out():
    assert not {"p99_ms", "refused_p99_ms"} & open_loop.summary(calls((1.0, LATE, 1.0)), 1.0).keys()
    assert "sent_late_p99_ms" not in open_loop.summary(Calls(), 1.0)


def test_wasted_is_what_was_computed_beyond_the_answers_got():
    gone = calls((1.0, GOOD, 0.1), (1.1, LATE, 1.0), (1.2, REFUSED, 0.1))
    assert open_loop.wasted(40, gone) == 0.75
    assert open_loop.wasted(10, gone) == 0
    assert open_loop.wasted(0, calls()) == 0


def test_the_calls_of_several_senders_are_joined():
    parts = [dataclasses.asdict(calls((1.0, GOOD, 0.1))), dataclasses.asdict(calls((1.1, LATE, 1.0)))]
    assert Calls.joined(parts).told == [GOOD, LATE]


def test_as_many_moments_count_as_the_rate_says_and_they_are_random():
    found = open_loop.moments(1000, 2.0, 0)
    assert sum(UNCOUNTED <= due < UNCOUNTED + 2 for due in found) == 2000
    gaps = np.diff(found)
    assert (gaps >= 0).all()
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.1)  # as between those of a Poisson process
    assert not np.array_equal(found, open_loop.moments(1000, 2.0, 1))


async def test_calls_are_sent_at_the_rate_although_none_is_answered_before_the_end():
    under_way, most = 0, 0

    async def call(frames: np.ndarray) -> str:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(2 * UNCOUNTED)
        under_way -= 1
        return REFUSED

    gone = await open_loop.offered([call], [np.zeros((3, 1))], 100, 0.1, even=True)
    assert set(gone.told) == {REFUSED}
    assert set(gone.steps) == {3}
    assert most == len(gone.sent) <= 110
    assert min(gone.took) >= UNCOUNTED
    assert min(gone.behind) > -0.01
