"""The search for the most streams that are on time, against servers whose delays are known."""

from hypothesis import given
from hypothesis import strategies as st
from searching import ON_TIME, Search

_COUNTS = st.lists(st.integers(1, 1000), min_size=1, max_size=60, unique=True).map(sorted)


@given(counts=_COUNTS, most=st.integers(0, 1001), rounds=st.integers(1, 3))
def test_it_finds_the_last_count_that_is_on_time_and_the_first_that_is_late(counts: list[int], most: int, rounds: int):
    search = Search(counts, lambda count: {"p99_ms": ON_TIME - 1 if count <= most else ON_TIME}, rounds)
    steps = 0
    while not search.done:
        search.step()
        steps += 1
    assert steps <= len(counts).bit_length()
    on_time, late = [c for c in counts if c <= most], [c for c in counts if c > most]
    assert [result["streams"] for result in search.on_time[:1]] == on_time[-1:]
    assert [result["streams"] for result in search.late[:1]] == late[:1]
    for results in (search.on_time, search.late):
        assert not results or rounds / 2 < len(results) <= rounds


def test_one_bad_round_of_three_does_not_make_a_count_late():
    delays = iter([500.0, 1.0, 1.0])
    search = Search([7], lambda _: {"p99_ms": next(delays)}, 3)
    search.step()
    assert search.done
    assert len(search.on_time) == 3


def test_a_round_without_numbers_ends_the_search():
    search = Search([1, 2, 3], lambda _: {}, 3)
    search.step()
    assert search.done
    assert search.failed
    assert not search.on_time
