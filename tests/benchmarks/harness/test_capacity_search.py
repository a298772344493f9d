"""The search for the most streams that are on time, against servers whose delays are known."""

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.harness.capacity_search import ON_TIME, Search
from benchmarks.harness.rounds import Result

_COUNTS = st.lists(st.integers(1, 1000), min_size=1, max_size=60, unique=True).map(sorted)


def delays(milliseconds: float) -> Result:
    return {"p99_ms": milliseconds}


def searched(search: Search) -> None:
    while not search.done:
        search.round()


@given(counts=_COUNTS, most=st.integers(0, 1001), rounds=st.integers(1, 5))
def test_it_finds_the_last_count_that_is_on_time_and_the_first_that_is_late(counts: list[int], most: int, rounds: int):
    asked: Counter[int] = Counter()

    def measure(count: int) -> Result:
        asked[count] += 1
        return delays(ON_TIME - 1 if count <= most else ON_TIME)

    search = Search(counts, measure, rounds)
    searched(search)
    on_time, late = [c for c in counts if c <= most], [c for c in counts if c > most]
    assert [result["streams"] for result in search.on_time[:1]] == on_time[-1:]
    assert [result["streams"] for result in search.late[:1]] == late[:1]
    for results in (search.on_time, search.late):
        assert len(results) in (0, rounds)
    assert search.out_of_reach is None
    assert asked.total() <= len(counts).bit_length() + 2 * rounds


@given(counts=_COUNTS, most=st.integers(1, 1001), noise=st.randoms(use_true_random=False))
def test_a_wrong_guess_is_walked_away_from(counts: list[int], most: int, noise: Random):
    asked: Counter[int] = Counter()

    def measure(count: int) -> Result:
        """Its first round of each count may say anything."""
        asked[count] += 1
        late = noise.random() < 0.5 if asked[count] == 1 else count > most
        return delays(ON_TIME if late else 1.0)

    search = Search(counts, measure, 3)
    searched(search)
    assert [result["streams"] for result in search.on_time[:1]] == [c for c in counts if c <= most][-1:]
    assert [result["streams"] for result in search.late[:1]] == [c for c in counts if c > most][:1]


def test_medians_decide_and_not_the_worst_round():
    answers = iter([1.0, 500.0, 500.0, 1.0, 1.0, 1.0])  # the first is the guess
    search = Search([7], lambda _: delays(next(answers)), 5)
    searched(search)
    assert [result["p99_ms"] for result in search.on_time] == [500.0, 500.0, 1.0, 1.0, 1.0]
    assert not search.late


def test_the_rounds_of_the_guess_do_not_decide():
    answers = iter([1.0, *[500.0] * 5])
    search = Search([7], lambda _: delays(next(answers)), 5)
    searched(search)
    assert not search.on_time
    assert len(search.late) == 5


@given(counts=_COUNTS, reach=st.integers(0, 1001), most=st.integers(0, 1001))
def test_counts_that_bring_no_numbers_are_told_unless_smaller_ones_are_late(counts: list[int], reach: int, most: int):
    def measure(count: int) -> Result:
        if count > reach:
            return {}
        return delays(ON_TIME - 1 if count <= most else ON_TIME)

    search = Search(counts, measure, 3)
    searched(search)
    within = [c for c in counts if c <= min(reach, most)]
    assert [result["streams"] for result in search.on_time[:1]] == within[-1:]
    following = next((c for c in counts if c > min(reach, most)), None)
    assert search.out_of_reach == (following if following is not None and following > reach else None)
    assert bool(search.late) == (following is not None and following <= reach)


def test_a_server_that_breaks_down_in_the_walk_is_asked_for_less():
    rounds = Counter[int]()

    def measure(count: int) -> Result:
        rounds[count] += 1
        return {} if count == 3 and rounds[count] > 1 else delays(1.0)

    search = Search([1, 2, 3], measure, 3)
    searched(search)
    assert search.out_of_reach == 3
    assert [result["streams"] for result in search.on_time] == [2, 2, 2]
