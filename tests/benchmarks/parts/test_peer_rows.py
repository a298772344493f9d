"""What the table says where Triton was there and not every round, or no count, brought numbers."""

import pytest

from benchmarks.harness import results_file
from benchmarks.harness.capacity_search import ON_TIME, Search
from benchmarks.loads.workload import LARGE
from benchmarks.parts.peer_rows import beside, peer_row
from benchmarks.parts.streams import found
from benchmarks.setup.goals import TRITON

_ROUNDS = [{"frames_per_second": 30.0}, {"frames_per_second": 50.0}]


def told(row) -> str:
    return results_file.table([row]).splitlines()[2].split("|")[-2].strip()


@pytest.mark.parametrize("theirs", [[{}, {"frames_per_second": 10.0}], [{}, {}]])
def test_a_goal_beside_rounds_without_numbers_is_told_as_not_measured(theirs: list[dict[str, float]]):
    others = {"the network alone": _ROUNDS, TRITON: theirs}
    alone, row = beside("streams", "work", LARGE, "frames_per_second", _ROUNDS, others, "it crashed")
    assert alone.ratio == 1
    assert (alone.note, row.ratio, row.values) == ("", None, {"frames_per_second": 40.0})
    assert told(row) == "Triton (goal 1.3, not measured); it crashed"
    own = peer_row("work", "network", theirs, "it crashed")
    assert own.values == {}
    assert told(own) == "it crashed"


def test_a_goal_beside_whole_rounds_says_nothing_of_crashes():
    (row,) = beside("streams", "work", LARGE, "frames_per_second", _ROUNDS, {TRITON: _ROUNDS}, "it crashed")
    assert told(row) == "1.00 of Triton (goal 1.3, not reached)"
    assert peer_row("work", "network", _ROUNDS, "it crashed").values == {"frames_per_second": 40.0}


@pytest.mark.parametrize(
    ("milliseconds", "share", "goal", "note", "expected"),
    [
        (1.0, 2.0, 1.4, "", ["2.00 of Triton (goal 1.4, reached)"]),
        (1.0, None, 1.4, "it crashed", ["Triton (goal 1.4, not measured); it crashed"]),
        (1.0, None, None, "", ["on time"]),
        (ON_TIME, 0.0, 1.4, "", ["0.00 of Triton (goal 1.4, not reached); no count was on time", "late"]),
        (ON_TIME, None, 1.4, "why", ["Triton (goal 1.4, not measured); no count was on time; why", "late"]),
        (ON_TIME, None, None, "", ["late"]),
        (None, None, None, "5 could not be counted", ["5 could not be counted"]),  # Triton's own
        (None, None, None, "", []),  # where none was started
    ],
)  # fmt: skip
def test_a_count_of_streams_has_a_row_whatever_was_found(
    milliseconds: float | None, share: float | None, goal: float | None, note: str, expected: list[str]
):
    search = Search([5], lambda _: {} if milliseconds is None else {"p99_ms": milliseconds}, 2)
    while not search.done:
        search.round()
    assert [told(row) for row in found("work", "network", search, share, goal, note)] == expected
