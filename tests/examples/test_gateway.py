"""The telephone gateway: who gets a freed place is heard as if alone, and the program tells what came of it."""

import asyncio
import re
import shutil
import subprocess
import sys

import numpy as np
from demo import ROOT
from features import log_mel
from gateway import MODEL, MODELS, Lines, gateway
from helpers.in_process import class_probabilities
from recordings import shipped
from seqloom_server.nn.files import model_folder


def run_gateway(*arguments):
    command = [sys.executable, str(ROOT / "examples" / "gateway.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)


def test_every_recording_is_said_from_its_first_frame_to_its_last_in_one_place():
    recordings = shipped().held_out[:3]
    features = [log_mel(each.samples, each.rate) for each in recordings]
    lines, said, whole = Lines(recordings, 5), {}, 0
    for _ in range(600):
        joining, places, frames, steps = lines.tick()
        assert not set(joining) & said.keys()
        said |= {place: [] for place in joining}
        for place, frame, step in zip(places, frames, steps, strict=True):
            assert step == len(said[place])
            said[place].append(frame)
        for place, which in zip(*lines.leave(), strict=True):
            np.testing.assert_array_equal(np.concatenate(said.pop(place)), features[which])
            whole += 1
    assert lines.left == whole > 5
    assert lines.joined == whole + len(said)


def test_what_is_heard_of_each_is_what_the_network_makes_of_the_recording_alone(server_process, tmp_path):
    shutil.copytree(MODELS / MODEL, tmp_path / "models" / MODEL)
    heard = asyncio.run(gateway(server_process("--models", tmp_path / "models").address, 12, 3.0))
    network, _ = model_folder.load(MODELS / MODEL)
    assert len(heard.said) > 12, "places were used again"
    for one in heard.said:
        alone = class_probabilities(network, log_mel(one.recording.samples, one.recording.rate))
        np.testing.assert_allclose(one.probs, alone, atol=1e-5)
    assert min(heard.delays) > 0


def test_the_program_shows_delays_and_words_and_leaves_no_server_behind():
    result = run_gateway("--speakers", 6, "--seconds", 2.5)
    assert result.returncode == 0, result.stderr
    assert re.search(
        r"^ +1\.\d s  \d of 6 speak, \d+ left  p50 [\d.]+ ms, p99 [\d.]+ ms, missed \d+$", result.stdout, re.M
    )
    ticks = int(re.search(r"all (\d+) ticks: p50", result.stdout)[1])
    assert 150 < ticks <= 250
    right, words, count = map(int, re.search(r"(\d+) of (\d+) words right, in (\d+) rec", result.stdout).groups())
    assert count > 3
    assert right > 0.8 * words
    frames = int(re.search(r"; ([\d,]+) in all", result.stdout)[1].replace(",", ""))
    assert ticks <= frames <= 6 * ticks


def test_an_address_that_is_none_is_one_clear_line():
    result = run_gateway("--address", "http://nowhere", "--seconds", 1)
    assert result.returncode == 1
    assert re.fullmatch(r"gateway: .*expected.*\n", result.stderr)
