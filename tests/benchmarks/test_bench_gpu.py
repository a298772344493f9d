"""The GPU benchmark's program, tried on the CPU with little of everything: that it works but for CUDA."""

import json
import subprocess
import sys

import pytest
import torch

_PROGRAM = ["-m", "benchmarks.bench_gpu"]


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *_PROGRAM, "--quick", "--seconds", "0.1", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("results")
    result = run("--device", "cpu", "--out", folder)
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("*-gpu-cpu-*.json")
    return json.loads(path.read_text())["rows"]


def of(rows: list[dict], beginning: str) -> list[dict]:
    found = [row for row in rows if row["work"].startswith(beginning)]
    assert found
    return found


@pytest.mark.slow
def test_all_kinds_of_work_go_through_the_server_and_tell_how_busy_its_device_is(rows: list[dict]):
    for beginning in (
        "whole recordings, 1 caller",
        "whole recordings, 4 callers",
        "4 streams, chunks of 10",
        "2 streams in real time",
        "forward_backward of 2 callers of one run",
        "gradients of 2 callers",
        "forward_backward of 2 callers at once",
    ):
        for row in of(rows, beginning):
            assert row["values"]["device_busy_share"] > 0
            assert row["values"]["frames_per_second"] > 0
    assert all(row["values"]["device_share"] > 0 for row in of(rows, "10 streams in real time"))
    assert [row["goal"] for row in of(rows, "padded steps")] == [0, 0, 0, 0]


@pytest.mark.slow
def test_forward_and_back_stand_beside_torch_alone_on_the_same_device(rows: list[dict]):
    for beginning, beside in (
        ("whole recordings, 4 callers", "the network alone"),
        ("forward_backward of 2 callers of one run", "the autograd pass"),
    ):
        for row in of(rows, beginning):
            if not row["work"].endswith("all three at once"):
                assert row["ratio"] > 0
                assert row["beside"] == beside


def test_without_a_device_it_says_so_in_a_line():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    result = run("--device", "cuda")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "no CUDA device" in result.stderr
