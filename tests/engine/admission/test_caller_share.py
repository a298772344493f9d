"""A caller's share of a bound: all that it needs while it is alone, but for a tenth, which others find free."""

import math

from hypothesis import given
from hypothesis import strategies as st
from seqloom_server.engine.admission.caller_share import admits, is_share_full

LIMITS = st.integers(1, 5000)


def fill(used, limit, most=math.inf):
    """Returns how many units a caller gets, one by one, where others hold `used`."""
    own = 0
    while own < most and admits(own, used + own, limit, 1):
        own += 1
    return own


@given(LIMITS)
def test_a_lone_caller_gets_nine_tenths_and_all_of_less_than_ten(limit):
    got = fill(0, limit)
    assert got == limit if limit < 10 else 0.9 * limit - 1 < got <= 0.9 * limit + 1
    assert limit < 10 or got < limit, "one unit is left for another caller"


@given(LIMITS)
def test_each_next_caller_gets_nine_tenths_of_what_is_left_until_nothing_is(limit):
    used = 0
    while used < limit:
        left = limit - used
        got = fill(used, limit)
        assert 1 <= got <= max(0.9 * left + 1, 1)
        assert left < 10 or got >= 0.9 * left - 1
        used += got
    assert not admits(0, used, limit, 1)


@given(LIMITS, st.integers(0, 5000), st.integers(1, 6000))
def test_a_caller_that_holds_nothing_is_refused_only_what_is_not_free(limit, used, added):
    assert admits(0, used, limit, added) == (used + added <= limit)


@given(LIMITS, st.integers(1, 6000))
def test_where_nothing_is_used_all_that_fits_is_let_in(limit, added):
    assert admits(0, 0, limit, added) == (added <= limit)


@given(
    LIMITS,
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 800), st.booleans()), max_size=60),
)
def test_whatever_comes_and_goes_the_bound_holds_and_nobody_holds_more_than_nine_times_what_was_free(limit, work):
    held = dict.fromkeys("abc", 0)
    for caller, size, comes in work:
        used = sum(held.values())
        if not comes:
            held[caller] = 0
        elif admits(held[caller], used, limit, size):
            held[caller] += size
            assert sum(held.values()) <= limit
            assert not used or held[caller] <= 9 * (limit - used)
        else:
            assert is_share_full(held[caller], used, limit, size) == (used + size <= limit)
