"""The benchmark's program, run as `make bench` runs it, but short."""

import json
import os
import pathlib
import subprocess
import sys
import wave

import numpy as np
import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PROGRAM = ["-m", "benchmarks.bench_server"]


pytestmark = pytest.mark.slow
_NETWORKS = ["H=1000 O=6000", "H=1000 O=6000 bf16", "H=64 O=40"]
_INT8 = "H=1000 O=6000 int8"


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Without Triton, whether or not this machine has one."""
    command = [sys.executable, *_PROGRAM, "--quick", "--seconds", "0.1", *map(str, arguments)]
    environment = os.environ | {"PEERS_HOME": str(_ROOT / "nowhere")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, str]:
    folder = tmp_path_factory.mktemp("results")
    parts = ("callers", "connections", "streams", "blocking")
    ended = run("--callers", 4, "--streams", 4, "--only", *parts, "--out", folder)
    assert ended.returncode == 0, ended.stderr
    return folder, ended.stderr


@pytest.fixture
def taken(result: tuple[pathlib.Path, str]) -> pathlib.Path:
    return result[0]


@pytest.fixture
def rows(taken: pathlib.Path) -> list[dict]:
    (path,) = taken.glob("*.json")
    return json.loads(path.read_text())["rows"]


def test_where_triton_is_not_there_it_says_how_to_set_it_up_and_goes_on(result: tuple[pathlib.Path, str]):
    folder, told = result
    assert "Triton is left out" in told
    assert "make peers" in told
    (path,) = folder.glob("*.json")
    assert json.loads(path.read_text())["conditions"]["Triton"] == "was not there"


def test_every_part_leaves_its_rows_with_numbers_of_the_work_done(rows: list[dict]):
    assert [(row["work"].split(",")[0], row["model"]) for row in rows] == [
        ("whole recordings", _NETWORKS[0]),
        ("whole recordings", _NETWORKS[1]),
        ("the network alone", _NETWORKS[0]),
        ("whole recordings", _NETWORKS[2]),
        ("the network alone", _NETWORKS[2]),
        ("whole recordings", _NETWORKS[2]),
        ("a bare grpc.aio unary echo of the same bytes", _NETWORKS[2]),
        ("4 streams", _NETWORKS[0]),
        ("4 streams", _NETWORKS[1]),
        ("4 streams", _NETWORKS[2]),
        ("a blocking call", _NETWORKS[2]),
    ]
    for row in rows[:-1]:
        values = row["values"]
        assert values["frames_per_second"] > values["answers_per_second"] > 0
        assert 0 < values["p50_ms"] <= values["p99_ms"] <= values["max_ms"]


def test_rows_that_stand_beside_another_tell_the_ratio(rows: list[dict]):
    for served, alone in ((rows[0], rows[2]), (rows[1], rows[2]), (rows[3], rows[4])):
        expected = served["values"]["frames_per_second"] / alone["values"]["frames_per_second"]
        assert served["ratio"] == pytest.approx(expected, rel=1e-2)
        assert served["beside"] == "the network alone"
    assert [rows[i]["goal"] for i in (0, 1, 5)] == [0.95, None, 0.7]


def test_the_table_says_whether_a_goal_was_reached(taken: pathlib.Path, rows: list[dict]):
    (path,) = taken.glob("*.md")
    lines = path.read_text().splitlines()[2:]
    for row, line in zip(rows, lines, strict=False):
        told = "(goal " in line and ("not reached" not in line)
        assert told == (row["goal"] is not None and row["ratio"] >= row["goal"]), line
        assert ("(goal " in line) == (row["goal"] is not None)


def test_a_result_names_the_commit_that_it_was_taken_at_and_no_folder(taken: pathlib.Path):
    (path,) = taken.glob("*.json")
    conditions = json.loads(path.read_text())["conditions"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=_ROOT, capture_output=True, text=True)
    named = conditions["commit"].removesuffix(" changed")
    assert head.stdout.startswith(named) if head.returncode == 0 else named == "unknown"
    assert len(named) >= 7
    assert str(_ROOT) not in path.read_text()


def test_the_servers_own_metrics_stand_in_its_rows(rows: list[dict]):
    for row in (rows[0], rows[1], rows[3], rows[5], *rows[7:10]):
        assert 1 <= row["values"]["batch_sequences"] <= 4
        assert row["values"]["padding_share"] == 0
        assert 0 < row["values"]["device_busy_share"] <= 1.05


def test_the_table_has_a_line_for_each_row_and_what_it_was_taken_under(taken: pathlib.Path, rows: list[dict]):
    (path,) = taken.glob("*.md")
    table, conditions = path.read_text().split("\n\n")
    assert len(table.splitlines()) == 2 + len(rows)
    assert "torch 2" in conditions
    assert "cores" in conditions


def test_real_time_streams_are_counted_up_to_the_first_count_that_is_late_over_recordings_of_ones_own(
    tmp_path: pathlib.Path,
):
    samples = np.random.default_rng(0).integers(-3000, 3000, 8000).astype("<i2")
    with wave.open(str(tmp_path / "0_anybody_0.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    result = run("--only", "realtime", "--data", tmp_path, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("*.json")
    by_network: dict[str, list[dict]] = {}
    for row in json.loads(path.read_text())["rows"]:
        by_network.setdefault(row["model"], []).append(row)
    assert list(by_network) == _NETWORKS
    for found in by_network.values():
        assert [row["beside"] for row in found] in (["on time", "late"], ["on time"], ["late"])
        counts = [row["values"]["streams"] for row in found]
        assert counts == sorted(set(counts))
        for row in found:
            assert (row["values"]["p99_ms"] < 100) == (row["beside"] == "on time")


def test_training_and_bounds_on_costs_stand_in_the_same_table_with_their_goals(tmp_path: pathlib.Path):
    parts = ("forward_backward", "gradients", "growth", "idle", "padding")
    result = run("--callers", 4, "--threads", 1, "--only", *parts, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text())["rows"]
    trained = ["elman H=1000 O=6000 D=160", "elman H=64 O=40 D=40"]
    for beginning, networks, goals in (
        ("forward_backward of 32 callers of one run", trained, [0.9, 0.4]),
        ("gradients of 32 callers", trained, [1.2, None]),
        ("the answer to a call for gradients", trained, [0.125, None]),
        ("100 streams", [_NETWORKS[2], _NETWORKS[0]], [1.2, 1.2]),
        ("400 streams, idle", [_NETWORKS[2]], [1.0]),
        ("padded steps", [_NETWORKS[0], _NETWORKS[2], _NETWORKS[1], _INT8], [0, 0, 0, 0]),
    ):
        found = [row for row in rows if row["work"].startswith(beginning)]
        assert [row["model"] for row in found] == networks
        assert [row["goal"] for row in found] == goals
        assert all(row["ratio"] is not None for row in found)
        assert all(row["lower_is_better"] == (beginning[0] != "f") for row in found)
    assert all(row["ratio"] == 0 for row in rows[-3:])  # on a CPU
    assert all(row["values"]["steps"] > 0 for row in rows[-3:])


def test_a_folder_without_recordings_is_one_clear_line(tmp_path: pathlib.Path):
    result = run("--data", tmp_path)
    assert result.returncode == 1
    assert result.stderr == f"bench_server: {tmp_path} holds no WAV files\n"
