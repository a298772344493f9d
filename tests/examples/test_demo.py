"""The demo from end to end, in a process of its own: what it prints is what the network makes of the recordings."""

import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest
from demo import MODEL, ROOT, turns
from features import log_mel
from helpers.in_process import class_probabilities
from helpers.wav_bytes import chunk, fmt, riff
from recognition import edits, recognise
from recordings import shipped
from seqloom_server.nn.files import model_folder

STEPS = 40
BARS = "▁▂▃▄▅▆▇█"


def run_demo(*arguments):
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, timeout=300)


def number(pattern, text):
    return float(re.search(pattern, text)[1].replace(",", ""))


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The demo as `make demo` runs it, but trained and heard for seconds only: its result, its picture, its models."""
    folder = tmp_path_factory.mktemp("demo")
    picture, models = folder / "new" / "demo.png", folder / "models"
    result = run_demo("--steps", STEPS, "--seconds", 1, "--picture", picture, "--models", models)
    assert result.returncode == 0, result.stderr
    return result, picture, models


@pytest.fixture(scope="module")
def expected(shown):
    """The recordings that the 16 callers say, and what the model makes of each, computed in this process."""
    corpus = shipped()
    network, _ = model_folder.load(shown[2] / MODEL)
    said = turns(corpus.held_out, 16, 1)
    probs = {one.name: class_probabilities(network, log_mel(one.samples, one.rate)) for queue in said for one in queue}
    return corpus.classes, said, probs


def test_all_callers_words_are_those_that_the_network_hears(shown, expected):
    classes, said, probs = expected
    lines = re.findall(r"^  caller +\d+  (.*)$", shown[0].stdout, re.MULTILINE)
    words = wrong = 0
    for line, queue in zip(lines, said, strict=True):
        heard = [re.sub(r" \(said: .*\)", "", part) for part in line.split(" | ")]
        assert heard == [" ".join(recognise(probs[one.name], classes)) for one in queue]
        words += sum(len(one.words) for one in queue)
        wrong += sum(edits(one.words, recognise(probs[one.name], classes)) for one in queue)
    assert f"{words - wrong} of {words} words right" in shown[0].stdout


def test_training_is_shown_in_a_few_lines_and_gets_somewhere(shown):
    before, _, after = shown[0].stdout.partition("Published as version 2 of digits.\n")
    assert after
    rows = re.findall(rf"^ +(\d+) %, step (\d+) of {STEPS}, loss ([\d.]+) a frame$", before, re.MULTILINE)
    assert [(int(share), int(step)) for share, step, _ in rows] == [(20 * i, 8 * i) for i in range(1, 6)]
    losses = [float(loss) for *_, loss in rows]
    assert losses[-1] < losses[0] / 2


def test_every_step_of_the_first_caller_is_shown_as_it_is_computed(shown, expected):
    classes, said, probs = expected
    runs = re.findall(rf"^ +\d+\.\d\d s  (\w+) +([{BARS}]+)$", shown[0].stdout, re.MULTILINE)
    steps = [(name, bar) for name, bars in runs for bar in bars]
    alone = np.concatenate([probs[one.name] for one in said[0]])
    assert [name for name, _ in steps] == [classes[i] for i in alone.argmax(axis=1)]
    heights = np.array([BARS.index(bar) for _, bar in steps]) / len(BARS)
    assert np.all(np.abs(heights + 1 / 16 - alone.max(axis=1)) < 1 / 16 + 1e-3)


def test_the_numbers_are_those_of_many_callers_in_one_batch(shown, expected):
    said = expected[1]
    assert number(r"throughput .*; ([\d,]+) in all", shown[0].stdout) == sum(len(one.labels) for q in said for one in q)
    assert number(r"batch size +([\d.]+)", shown[0].stdout) > 1
    assert number(r"padding +([\d.]+) %", shown[0].stdout) == 0


def test_the_picture_is_where_it_says(shown):
    result, picture, _ = shown
    assert result.stdout.endswith(f"{picture}\n")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_no_server_is_left_behind(shown):
    host, port = re.search(r"listens on (\S+):(\d+)", shown[0].stdout).groups()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))


def test_a_folder_of_recordings_of_any_rate_is_trained_on_and_heard(folder_of_digits, tmp_path):
    result = run_demo("--data", folder_of_digits, "--callers", 8, "--seconds", 1, "--picture", tmp_path / "demo.png")
    assert result.returncode == 0, result.stderr
    assert "Training a GRU on 270 recordings of 9 speakers" in result.stdout
    right, words = map(int, re.search(r"(\d+) of (\d+) words right", result.stdout).groups())
    assert right > words / 2
    assert (tmp_path / "demo.png").exists()


def test_a_folder_without_recordings_is_one_clear_line(tmp_path):
    result = run_demo("--data", tmp_path)
    assert result.returncode == 1
    assert re.fullmatch(r"demo: .* holds 0 recordings to train on .*\n", result.stderr)


def test_recordings_that_cannot_be_read_or_are_left_out_are_one_clear_line(tmp_path):
    for name in ("7_ann_0.wav", "7_ann_5.wav", "seven.wav"):
        (tmp_path / name).write_bytes(riff(fmt(), chunk(b"data", b"")))
    result = run_demo("--data", tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"demo: .*; left out 1 WAV file of another name .* 2 WAV files without .*\n", result.stderr)
    (tmp_path / "7_ann_1.wav").write_bytes(riff(fmt(rate=0), chunk(b"data", bytes(100))))
    result = run_demo("--data", tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"demo: 7_ann_1\.wav is no WAV file that can be read, PCM, 16 bits, 0 Hz, .*\n", result.stderr)
