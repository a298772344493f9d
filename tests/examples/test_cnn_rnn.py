"""The comparison of networks with and without a convolution, in a process of its own, on a folder of recordings."""

import os
import re
import subprocess
import sys

from demo import ROOT
from helpers.wav_bytes import chunk, fmt, riff


def run_example(*arguments):
    command = [sys.executable, str(ROOT / "examples" / "cnn_rnn.py"), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "SEQLOOM_DATA"}
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, timeout=300)


def test_networks_are_trained_through_the_service_and_compared_in_a_table_and_a_plot(folder_of_digits, tmp_path):
    few = ("--epochs", 6, "--seeds", 2, "--models", "gru", "conv-gru", "elman-raw")
    result = run_example("--data", folder_of_digits, *few, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    table = (tmp_path / "cnn_rnn.md").read_text()
    assert result.stdout.endswith(table)
    rows = re.findall(r"^\| (\S+) \| ([\d.]+)% \| ([\d.]+)%, ([\d.]+)% \|$", table, re.MULTILINE)
    assert [name for name, *_ in rows] == ["gru", "conv-gru", "elman-raw"]
    for name, mean, *seeds in rows:
        assert abs(float(mean) - sum(map(float, seeds)) / 2) < 0.11
        assert name == "elman-raw" or min(map(float, seeds)) > 30, "ten digits: what knows nothing has 10 %"
    assert (tmp_path / "cnn_rnn.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_folder_it_is_skipped_with_a_word(tmp_path):
    for arguments in ((), ("--data", tmp_path / "nowhere")):
        result = run_example(*arguments)
        assert result.returncode == 0
        assert re.fullmatch(r"cnn_rnn: skipped, .*\n", result.stdout)


def test_a_recording_that_cannot_be_read_is_one_clear_line(tmp_path):
    (tmp_path / "7_ann_5.wav").write_bytes(riff(fmt(rate=0), chunk(b"data", bytes(100))))
    result = run_example("--data", tmp_path)
    assert result.returncode == 1
    assert re.fullmatch(r"cnn_rnn: 7_ann_5\.wav is no WAV file that can be read, .* 0 Hz, .*\n", result.stderr)
