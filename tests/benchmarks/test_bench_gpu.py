"""The GPU benchmark's program, tried on the CPU with tiny sizes: that it works but for CUDA."""

import json
import pathlib
import subprocess
import sys

import pytest
import torch
from seqloom_server.nn.spec import ModelSpec

from benchmarks.parts import gpu_kernels
from benchmarks.setup.gpu_bench import GpuBench

_PROGRAM = ["-m", "benchmarks.bench_gpu"]
_COUNTS = [1, 4]


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *_PROGRAM, "--quick", "--seconds", "0.1", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("results")
    result = run("--device", "cpu", "--out", folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def rows(taken: pathlib.Path) -> list[dict]:
    (path,) = taken.glob("*-gpu-cpu.json")
    return json.loads(path.read_text())["rows"]


def of(rows: list[dict], beginning: str) -> list[dict]:
    found = [row for row in rows if row["work"].startswith(beginning)]
    assert found
    return found


@pytest.mark.slow
def test_every_cell_is_checked_against_the_cpu_before_anything_is_measured(rows: list[dict]):
    checked = [row for row in rows if "worst_error" in row["values"]]
    assert rows[: len(checked)] == checked
    assert {row["model"].split()[0] for row in checked} == {"elman", "gru", "lstm"}
    assert [row["work"] for row in checked[:3]] == ["outputs, ragged", "outputs, of one length", "gradients"]
    assert all(0 < row["values"]["worst_error"] < 1e-4 for row in checked)


def test_what_is_wrong_ends_the_benchmark():
    bench = GpuBench(torch.device("cpu"), {"elman": ModelSpec("elman", 4, 5, 3)}, [1], 5, 8, 1)
    weights = bench.weights("elman")
    outputs = weights.network.outputs
    weights.network.outputs = lambda *given: (outputs(*given)[0] * 1.001, None)
    with pytest.raises(gpu_kernels.Wrong, match="outputs, ragged of elman"):
        list(gpu_kernels.correctness(bench))


@pytest.mark.slow
def test_forward_and_back_stand_beside_torch_and_the_ceiling(rows: list[dict]):
    (ceiling,) = of(rows, "a product of")
    assert ceiling["values"]["tflops"] > 0
    forward = [row for row in of(rows, "forward, ") if row["beside"] == "torch.nn"]
    assert len(forward) == 3 * len(_COUNTS)
    back = of(rows, "forward and back")
    assert len(back) == 2 * 3 * len(_COUNTS)
    for row in [*forward, *back]:
        assert row["ratio"] > 0
        assert row["values"]["ceiling_share"] > 0
    assert {row["model"].split()[-1] for row in rows if row["beside"] == "full precision"} == {"tf32", "bf16"}


@pytest.mark.slow
def test_all_kinds_of_work_go_through_the_server_and_tell_how_busy_its_device_is(rows: list[dict]):
    for beginning in (
        "whole recordings, 1 caller",
        "whole recordings, 4 callers",
        "4 streams, chunks of 10",
        "2 streams in real time",
        "gradients of 2 callers",
        "forward_backward of 2 callers",
    ):
        for row in of(rows, beginning):
            assert row["values"]["device_busy_share"] > 0
            assert row["values"]["frames_per_second"] > 0
    assert all(row["values"]["device_share"] > 0 for row in of(rows, "10 streams in real time"))
    assert [row["goal"] for row in of(rows, "padded steps")] == [0, 0, 0]


def test_without_a_device_it_says_so_in_a_line():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    result = run("--device", "cuda")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "no CUDA device" in result.stderr
