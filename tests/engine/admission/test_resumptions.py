"""Sessions that are resumed are admitted before new ones, and new ones are held back no longer than is said."""

from hypothesis import given
from hypothesis import strategies as st
from seqloom_server.engine.admission.resumptions import Resumptions


def test_new_ones_come_in_where_nobody_is_resumed():
    assert not Resumptions().hold_back(1, 1, 0.0)


def test_while_some_are_resumed_as_many_places_are_kept_as_came_lately():
    resumptions = Resumptions()
    for _ in range(10):
        resumptions.came(1, "a", 0.0)
    assert resumptions.hold_back(10, 1, 0.1)
    assert not resumptions.hold_back(11, 1, 0.1)
    assert resumptions.hold_back(10, 1, 1.5), "those of the second before count as well"
    assert not resumptions.hold_back(10, 1, 2.5)


def test_a_group_counts_by_its_streams():
    resumptions = Resumptions()
    resumptions.came(100, "a", 0.0)
    assert resumptions.hold_back(149, 50, 0.1)
    assert not resumptions.hold_back(150, 50, 0.1)


def test_nobody_new_takes_the_place_of_one_that_was_refused_and_will_come_again():
    resumptions = Resumptions()
    resumptions.came(1, "a", 0.0)
    resumptions.refused("a", 0.0)
    assert resumptions.hold_back(1000, 1, 1.9)
    assert not resumptions.hold_back(1000, 1, 2.1)


def test_a_caller_that_goes_on_saying_that_it_is_resumed_holds_others_back_for_a_few_seconds_of_a_minute():
    resumptions, held = Resumptions(), 0
    for tenth in range(1200):
        now = tenth / 10
        resumptions.came(1000, "a", now)
        resumptions.refused("a", now)
        held += resumptions.hold_back(100, 1, now)
    assert 40 <= held <= 2 * 70, "two times, each 5 s and the 2 s in which the last could come again"
    other = 60.0 + 120.0
    resumptions.refused("a", other)
    assert resumptions.hold_back(100, 1, other), "after its rest it counts again"


def test_what_another_caller_resumes_counts_while_one_rests():
    resumptions = Resumptions()
    resumptions.refused("a", 0.0)
    resumptions.refused("a", 20.0)
    assert not resumptions.hold_back(100, 1, 20.0)
    resumptions.refused("b", 20.0)
    assert resumptions.hold_back(100, 1, 20.0)


def test_callers_are_remembered_up_to_a_bound_and_forgotten_after_their_rest(monkeypatch):
    monkeypatch.setattr("seqloom_server.engine.admission.resumptions._MOST_CALLERS", 3)
    resumptions = Resumptions()
    for number in range(10):
        resumptions.refused(str(number), 0.0)
    assert len(resumptions._since) == 3
    resumptions.refused("other", 100.0)
    assert list(resumptions._since) == ["other"]


@given(st.lists(st.tuples(st.sampled_from(["came", "refused", "new"]), st.floats(0.001, 1.5)), max_size=300))
def test_whoever_says_that_it_is_resumed_new_ones_are_held_back_for_five_seconds_at_most_and_then_not_for_five(acts):
    resumptions, now, held = Resumptions(), 0.0, []
    for act, seconds in acts:
        now += seconds
        if act == "new":
            held.append((now, resumptions.hold_back(0, 1, now)))
        elif act == "came":
            resumptions.came(1000, "a", now)
        else:
            resumptions.refused("ab"[len(held) % 2], now)
    began = None
    for at, back in held:
        if back:
            if began is None or at - began >= 10.0:
                began = at
            assert at - began < 5.0
