"""The benchmark of messages, run as `make bench-front-end` runs it, but short and of calls alone."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
_PROGRAM = ["-m", "benchmarks.bench_front_end"]


def test_it_leaves_the_cost_of_each_kind_of_message_beside_an_echo(tmp_path):
    command = [sys.executable, *_PROGRAM, "--quick", "--seconds", "0.2", "--only", "calls", "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text())["rows"]
    assert [row["work"] for row in rows] == ["Infer, 1 sequence of 40", "Infer, 16 sequences of 40"]
    for row, sequences in zip(rows, (1, 16), strict=True):
        values = row["values"]
        assert row["lower_is_better"]
        assert values["messages"] > 0
        assert values["frames_per_second"] > values["entries_per_second"] >= values["messages_per_second"] > 0
        assert values["reply_bytes"] > sequences * 40 * 4
    assert path.with_suffix(".md").read_text().startswith(result.stdout[1:200])
