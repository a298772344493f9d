"""The pace of work: what it takes beside what was expected, soon learned, soon forgotten, and never absurd."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqloom_server.engine.admission.pace import Pace


def work(pace, now, seconds, ratio, piece=0.02):
    """Does pieces of work one after the other for some seconds; returns when they have ended."""
    end = now + seconds
    while now < end:
        now += piece * ratio
        pace.observe(piece, piece * ratio, now)
    return now


def test_work_goes_as_expected_until_something_is_known():
    assert Pace().ratio(0.0) == 1.0
    assert Pace().ratio(1e9) == 1.0


@pytest.mark.parametrize(("before", "after"), [(1.0, 3.0), (3.0, 1.0), (1.0, 0.5)])
def test_a_change_is_followed_within_a_second(before, after):
    pace = Pace()
    now = work(pace, 0.0, 10.0, before)
    assert pace.ratio(now) == pytest.approx(before, rel=0.05)
    now = work(pace, now, 1.0, after)
    assert abs(pace.ratio(now) - after) < 0.4 * abs(after - before)
    now = work(pace, now, 2.0, after)
    assert pace.ratio(now) == pytest.approx(after, rel=0.05)


def test_one_odd_piece_among_many_is_not_believed():
    pace = Pace()
    now = work(pace, 0.0, 10.0, 1.0)
    pace.observe(0.001, 0.05, now)
    assert pace.ratio(now) < 1.15


def test_what_was_known_is_forgotten_when_idle():
    pace = Pace()
    now = work(pace, 0.0, 5.0, 4.0)
    assert pace.ratio(now) > 3.7
    assert pace.ratio(now + 5.0) < 1.1
    assert pace.ratio(now + 1e6) == 1.0


def test_it_is_stale_after_a_second_without_work():
    pace = Pace()
    assert pace.is_stale(0.0)
    pace.observe(0.1, 0.1, 5.0)
    assert not pace.is_stale(5.9)
    assert pace.is_stale(6.1)


SECONDS = st.floats(0, 1e6)


@given(st.lists(st.tuples(SECONDS, SECONDS, st.floats(-10, 1e6)), max_size=50))
def test_it_is_bounded_whatever_is_observed_and_whatever_clocks_do(observed):
    pace = Pace()
    for expected, took, now in observed:
        pace.observe(expected, took, now)
        assert 0.2 <= pace.ratio(now) <= 20
        assert 0.2 <= pace.ratio(now - 5) <= 20
        assert 0.2 <= pace.ratio(now + 1e9) <= 20
