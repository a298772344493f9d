"""The regression check: two files of results, by ratio, whatever rows they have."""

import json
import math
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

_PROGRAM = ["-m", "benchmarks.compare"]
_NETWORK = "H=64 O=40"


def row(work: str, ratio: float | None = None, speed: float | None = None, **more: object) -> dict:
    values = {} if speed is None else {"frames_per_second": speed}
    return {"work": work, "model": _NETWORK, "values": values, "rounds": [values], "ratio": ratio, **more}


def run(folder: pathlib.Path, before: list[dict], after: list[dict], *arguments: str) -> tuple[int, list[str]]:
    """Returns the status, and the lines of both outputs."""
    paths = [folder / "before.json", folder / "after.json"]
    for path, rows in zip(paths, (before, after), strict=True):
        path.write_text(json.dumps({"conditions": {}, "rows": rows}))
    command = [sys.executable, *_PROGRAM, *map(str, paths), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return result.returncode, (result.stdout + result.stderr).splitlines()


def test_a_ratio_that_fell_by_more_than_the_tolerance_is_told_and_fails(tmp_path: pathlib.Path):
    status, lines = run(tmp_path, [row("a", 1.0), row("b", 1.0)], [row("a", 0.84), row("b", 0.86)])
    assert status == 1
    assert [line.split(":")[0] for line in lines[:2]] == ["WORSE", "ok"]
    assert "2 rows compared, 1 worse by more than 15%" in lines


def test_other_processors_are_told_and_do_not_fail(tmp_path: pathlib.Path):
    paths = {name: tmp_path / f"{name}.json" for name in ("AMD EPYC", "Intel Xeon")}
    for name, path in paths.items():
        path.write_text(json.dumps({"conditions": {"processor": name}, "rows": [row("a", 1.0)]}))
    one, other = paths.values()
    result = subprocess.run([sys.executable, *_PROGRAM, str(one), str(other)], capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout.startswith("other processors: AMD EPYC before, Intel Xeon after\n")
    result = subprocess.run([sys.executable, *_PROGRAM, str(one), str(one)], capture_output=True, text=True)
    assert "processor" not in result.stdout


def test_the_tolerance_is_an_option(tmp_path: pathlib.Path):
    assert run(tmp_path, [row("a", 1.0)], [row("a", 0.84)], "--tolerance", "0.2")[0] == 0
    assert run(tmp_path, [row("a", 1.0)], [row("a", 0.96)], "--tolerance", "0.03")[0] == 1


def test_ratios_to_different_things_are_not_compared(tmp_path: pathlib.Path):
    before, after, same = row("a", 1.0, beside="1 stream"), row("a", 0.5, beside="10 streams"), row("b", 1.0)
    assert run(tmp_path, [before, same], [after, same])[0] == 0
    assert run(tmp_path, [before, same], [row("a", 0.5, beside="1 stream"), same])[0] == 1


def test_where_less_is_better_growth_fails_also_against_a_file_that_does_not_say_so(tmp_path: pathlib.Path):
    less = {"lower_is_better": True}
    for old in (row("a", 1.0), row("a", 1.0, **less)):
        assert run(tmp_path, [old], [row("a", 1.3, **less)])[0] == 1
        assert run(tmp_path, [old], [row("a", 0.5, **less)])[0] == 0


def test_what_was_nothing_where_less_is_better_is_worse_when_there_is_any(tmp_path: pathlib.Path):
    def padded(share: float) -> list[dict]:
        return [row("padding", share, lower_is_better=True), row("b", 1.0)]

    assert run(tmp_path, padded(0.0), padded(0.0))[0] == 0
    assert run(tmp_path, padded(0.1), padded(0.0))[0] == 0
    assert run(tmp_path, padded(0.0), padded(0.1))[0] == 1


def test_speeds_count_only_beside_the_yardstick_of_their_own_sitting(tmp_path: pathlib.Path):
    def sitting(speed: float, alone: float) -> list[dict]:
        return [row("streams", speed=speed), row("the network alone, batches of 64", speed=alone)]

    assert run(tmp_path, sitting(100, 1000), sitting(10, 100))[0] == 0  # a machine a tenth as fast
    assert run(tmp_path, sitting(100, 1000), sitting(100, 2000))[0] == 1
    status, lines = run(tmp_path, [row("streams", speed=100)], [row("streams", speed=10)])
    assert status == 2
    assert "no row in common" in lines[-1]


def test_a_yardstick_that_only_one_file_has_is_not_used(tmp_path: pathlib.Path):
    before = [
        row("streams", speed=100),
        row("the network alone", speed=50),
        row("a bare grpc.aio unary echo", speed=200),
    ]
    after = [row("streams", speed=100), row("a bare grpc.aio unary echo", speed=200)]
    status, lines = run(tmp_path, before, after)
    assert status == 0
    assert f"missing: the network alone, {_NETWORK}" in lines


def test_rows_that_only_one_file_has_are_listed_and_do_not_fail(tmp_path: pathlib.Path):
    status, lines = run(tmp_path, [row("a", 1.0), row("old", 1.0)], [row("a", 1.0), row("young", 1.0)])
    assert status == 0
    assert f"missing: old, {_NETWORK}" in lines
    assert f"new: young, {_NETWORK}" in lines


def test_the_same_work_of_another_network_is_another_row(tmp_path: pathlib.Path):
    status, lines = run(tmp_path, [row("a", 1.0)], [row("a", 0.1) | {"model": "H=1000 O=6000"}])
    assert status == 2
    assert f"missing: a, {_NETWORK}" in lines


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"rows": [1]}', '{"rows": [{"work": "a"}]}'])
def test_what_is_no_file_of_results_is_one_clear_line(tmp_path: pathlib.Path, content: str):
    path = tmp_path / "x.json"
    path.write_text(content)
    result = subprocess.run([sys.executable, *_PROGRAM, str(path), str(path)], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith(f"compare: {path} is no file of results")
    assert len(result.stderr.splitlines()) == 1


_ROWS = st.dictionaries(
    st.sampled_from(["a", "b", "c", "the network alone", "one autograd pass"]),
    st.tuples(st.none() | st.just(0.0) | st.floats(0.01, 100), st.none() | st.floats(1, 1e6), st.booleans()),
)


@given(before=_ROWS, after=_ROWS, faster=st.floats(0.01, 100))
def test_any_two_files_can_be_compared_and_a_faster_machine_changes_nothing(before: dict, after: dict, faster: float):
    from benchmarks.compare import compared

    def rows(taken: dict, times: float = 1.0) -> dict:
        return {
            (work, _NETWORK): row(work, ratio, speed and speed * times, lower_is_better=lower)
            for work, (ratio, speed, lower) in taken.items()
        }

    changes = list(compared(rows(before), rows(after)))
    assert {change.key[0] for change in changes} <= before.keys() & after.keys()
    for work in before.keys() & after.keys():
        if None not in (before[work][0], after[work][0]):
            assert work in {change.key[0] for change in changes}
    again = list(compared(rows(before), rows(after, faster)))
    assert [change.key for change in again] == [change.key for change in changes]
    for one, other in zip(changes, again, strict=True):
        assert math.isclose(one.grown, other.grown, rel_tol=1e-9)


@given(rows=_ROWS)
def test_a_file_beside_itself_has_not_changed(rows: dict):
    from benchmarks.compare import compared

    same = {(work, _NETWORK): row(work, ratio, speed) for work, (ratio, speed, _) in rows.items()}
    assert all(change.grown == 1 for change in compared(same, same))
