"""Every benchmark runs, in short: a few of its parts leave rows, in a table and in a file that compare reads."""

import json
import os
import pathlib
import subprocess
import sys
import wave

import numpy as np
import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(name: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PEERS_HOME": str(_ROOT / "nowhere")}
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]
    return subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("name", "more", "works"),
    [
        ("bench_server", ["callers", "--callers", "2"], 5),
        ("bench_server", ["ceiling", "--callers", "2", "--streams", "2"], 8),
        ("bench_server", ["groups"], 11),
        ("bench_training", ["gradients", "--callers", "2"], 6),
        ("bench_sweeps", ["streams", "--streams", "1", "2", "--chunks", "2"], 4),
        ("bench_front_end", ["calls"], 2),
        ("bench_overload", ["neighbours"], 4),
        ("bench_gpu", ["realtime", "padding", "--device", "cpu"], 6),
    ],
)
def test_it_runs(tmp_path: pathlib.Path, name: str, more: list[str], works: int):
    quick = ("--quick", "--seconds", 0.1, "--threads", 1, "--out", tmp_path)
    result = run(name, *quick, "--only", *more)
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == works
    assert len(path.with_suffix(".md").read_text().split("\n\n")[0].splitlines()) == 2 + works
    assert run("compare", path, path).returncode in (0, 2)  # 2: nothing but rates


def test_what_a_precision_costs_trained_networks_is_told(tmp_path: pathlib.Path):
    noise = np.random.default_rng(0)
    for digit in range(2):
        for index in range(7):
            tone = 3000 * np.sin(2 * np.pi * (300 + 500 * digit) * np.arange(2000) / 8000)
            with wave.open(str(tmp_path / f"{digit}_anybody_{index}.wav"), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes((tone + noise.normal(0, 300, 2000)).astype("<i2").tobytes())
    result = run("bench_precision", "--data", tmp_path, "--quick", "--epochs", 1, "--threads", 1, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("*.json")
    rows = {row["model"]: row["values"] for row in json.loads(path.read_text())["rows"]}
    assert {f"{cell}, {precision}" for cell in ("elman", "gru", "lstm") for precision in ("bf16", "int8")} < rows.keys()
    for values in rows.values():
        assert 0 < values["hidden_state"] < 0.1
        assert 0.9 < values["same_labels"] <= 1
