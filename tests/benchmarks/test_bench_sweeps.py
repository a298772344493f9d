"""The program of the sweeps, run as `make bench-sweeps` runs it, but short and over few points."""

import json
import pathlib
import subprocess
import sys

import pytest

_PROGRAM = ["-m", "benchmarks.bench_sweeps"]
pytestmark = pytest.mark.slow
_NETWORKS = ["H=1000 O=6000", "H=64 O=40"]


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, *_PROGRAM, "--quick", "--seconds", "0.1", "--threads", "1", "--out", str(folder)]
    command += ["--callers", "3", "1", "--streams", "1", "4", "--chunks", "2", "--lengths", "5", "--widths", "8"]
    result = subprocess.run([*command, "--idle", "400"], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def rows(taken: pathlib.Path) -> list[dict]:
    (path,) = taken.glob("*-sweeps-cpu-*.json")
    return json.loads(path.read_text())["rows"]


def of(rows: list[dict], sweep: str) -> list[dict]:
    found = [row for row in rows if row["sweep"] == sweep]
    assert found
    return found


def test_every_sweep_leaves_a_point_for_each_value_of_its_axes(rows: list[dict]):
    points = [(row["who"], row["at"]["callers"], row["model"]) for row in of(rows, "callers")]
    assert points == [(who, n, network) for network in _NETWORKS for n in (1, 3) for who in ("served", "alone")]
    points = [(row["at"]["chunk"], row["at"]["streams"], row["model"]) for row in of(rows, "streams")]
    assert points == [(2, 1, _NETWORKS[1]), (2, 4, _NETWORKS[1]), (10, 1, _NETWORKS[0]), (10, 4, _NETWORKS[0])]
    assert [(row["at"]["steps"], row["model"]) for row in of(rows, "lengths")] == [
        (5, name) for name in _NETWORKS[::-1]
    ]
    assert [(row["who"], row["model"]) for row in of(rows, "widths")] == [
        ("elman", "elman H=8 O=40"),
        ("elman alone", "elman H=8 O=40"),
    ]
    kinds = ("streams", "callers", "trainers")
    assert [(row["who"], row["at"]["together"]) for row in of(rows, "mixed")] == [(k, n) for k in kinds for n in (0, 1)]


def test_what_a_frame_costs_is_told_on_the_clock_and_within_it_on_the_device(rows: list[dict]):
    for row in of(rows, "streams") + of(rows, "lengths"):
        values = row["values"]
        assert values["us_a_frame"] == pytest.approx(1e6 / values["frames_per_second"], rel=1e-2)
        assert values["device_us_a_frame"] > 0
        assert values["device_busy_share"] == pytest.approx(
            values["device_us_a_frame"] / values["us_a_frame"], rel=1e-2
        )


def test_points_stand_beside_the_network_alone_or_the_least_cost_of_fewer_streams(rows: list[dict]):
    for sweep in ("callers", "widths"):
        found = of(rows, sweep)
        for served, alone in zip(found[::2], found[1::2], strict=True):
            expected = served["values"]["frames_per_second"] / alone["values"]["frames_per_second"]
            assert served["ratio"] == pytest.approx(expected, rel=1e-2)
            assert served["beside"] == "the network alone"
    one, four = of(rows, "streams")[:2]
    assert one["ratio"] is None
    assert four["ratio"] == pytest.approx(four["values"]["us_a_frame"] / one["values"]["us_a_frame"], rel=1e-2)
    assert four["beside"] == "the least cost of a frame with fewer streams"
    assert four["goal"] == 1.2


def test_mixed_traffic_tells_what_each_has_of_what_it_has_alone(rows: list[dict]):
    for who, number in (("streams", "p99_ms"), ("callers", "frames_per_second"), ("trainers", "frames_per_second")):
        alone, together = [row for row in of(rows, "mixed") if row["who"] == who]
        assert together["ratio"] == pytest.approx(together["values"][number] / alone["values"][number], rel=1e-2)


def test_idle_streams_hold_little_more_than_their_states(rows: list[dict]):
    (row,) = of(rows, "idle")
    assert row["model"] == _NETWORKS[1]
    assert row["values"]["state_kb"] == 0.256
    assert row["ratio"] == pytest.approx(row["values"]["kb_a_stream"] / 20.256, rel=1e-2)
    assert row["ratio"] <= 1  # what the design allows


def test_the_results_are_drawn(taken: pathlib.Path):
    (picture,) = taken.glob("*-sweeps-cpu-*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_recordings_is_one_clear_line(tmp_path: pathlib.Path):
    command = [sys.executable, *_PROGRAM, "--data", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr == f"bench_sweeps: {tmp_path} holds no WAV files\n"
