"""The training benchmark's program, run as `make bench-training` runs it, but short and with little of everything."""

import json
import pathlib
import subprocess
import sys

import pytest

_PROGRAM = ["-m", "benchmarks.bench_training"]
pytestmark = pytest.mark.slow
_NETWORKS = ["elman H=1000 O=6000 D=160", "elman H=64 O=40 D=40"]


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *_PROGRAM, "--quick", "--seconds", "0.1", "--threads", "1", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("results")
    result = run("--callers", 3, "--streams", 2, "--out", folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def rows(taken: pathlib.Path) -> list[dict]:
    (path,) = taken.glob("*-training-cpu-*.json")
    return json.loads(path.read_text())["rows"]


def of(rows: list[dict], beginning: str) -> list[dict]:
    found = [row for row in rows if row["work"].startswith(beginning)]
    assert found
    return found


def test_every_part_leaves_its_rows_for_each_of_its_networks(rows: list[dict]):
    assert [row["model"] for row in of(rows, "one autograd pass over 3 recordings")] == [
        *_NETWORKS,
        "gru H=256 O=40 D=40",
        "lstm H=256 O=40 D=40",
    ]
    for beginning in ("gradients of 3 callers", "forward_backward of 3 callers at once", "the answer to a call"):
        assert [row["model"] for row in of(rows, beginning)] == _NETWORKS
    for beginning in ("2 streams in real time, beside 2 trainers", "2 trainers"):
        assert {row["model"] for row in of(rows, beginning)} == {_NETWORKS[0]}


def test_callers_of_one_run_stand_beside_the_autograd_pass_of_their_network(rows: list[dict]):
    served = of(rows, "forward_backward of 3 callers of one run")
    assert len(served) == 8
    for row in served:
        (alone,) = [other for other in of(rows, "one autograd pass") if other["model"] == row["model"]]
        expected = row["values"]["frames_per_second"] / alone["values"]["frames_per_second"]
        assert row["ratio"] == pytest.approx(expected, rel=1e-2)
        assert row["beside"] == "the autograd pass"
        assert 1 <= row["values"]["batch_sequences"] <= 6


def test_gradients_of_ones_own_tell_device_time_and_bytes_beside_their_yardsticks(rows: list[dict]):
    for own, summed in zip(of(rows, "gradients of 3"), of(rows, "forward_backward of 3 callers at once"), strict=True):
        expected = own["values"]["device_us_a_frame"] / summed["values"]["device_us_a_frame"]
        assert own["ratio"] == pytest.approx(expected, rel=1e-2)
    large, small = of(rows, "the answer to a call")
    parameters = 1000 * (160 + 1000 + 2) + 6000 * 1001
    assert large["values"]["dense_kb"] == pytest.approx(4e-3 * parameters, rel=1e-3)  # the tensors, and little more
    assert large["ratio"] < 1 / 8
    assert large["ratio"] < small["ratio"] <= 1


def test_streams_and_trainers_tell_what_each_does_to_the_other(rows: list[dict]):
    alone, beside = of(rows, "2 trainers")
    left = beside["values"]["frames_per_second"] / alone["values"]["frames_per_second"]
    assert beside["ratio"] == pytest.approx(left, rel=1e-2)
    (streams,) = of(rows, "2 streams in real time, beside 2 trainers")
    share = streams["values"]["device_share"]
    assert 0 < share < 1
    assert beside["values"]["of_what_streams_leave"] == pytest.approx(left / (1 - share), rel=1e-2)
    assert 0 < streams["values"]["p50_ms"] <= streams["values"]["p99_ms"] <= streams["values"]["max_ms"]


def test_the_table_has_a_line_for_each_row(taken: pathlib.Path, rows: list[dict]):
    (path,) = taken.glob("*-training-cpu-*.md")
    table, conditions = path.read_text().split("\n\n")
    assert len(table.splitlines()) == 2 + len(rows)
    assert "rounds 1" in conditions


def test_a_folder_without_recordings_is_one_clear_line(tmp_path: pathlib.Path):
    result = run("--data", tmp_path)
    assert result.returncode == 1
    assert result.stderr == f"bench_training: {tmp_path} holds no WAV files\n"
