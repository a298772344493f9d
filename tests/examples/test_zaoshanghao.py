"""The standing example, in a process of its own: what it prints is what another implementation computes."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from seqloom_server.nn import cells
from seqloom_server.nn.network import Network
from seqloom_server.nn.spec import ModelSpec
from serving import SMALL, write_models
from zaoshanghao import CLASSES, MODEL, ROOT, apart, forward, greeting, labels

NETWORK = ModelSpec(cell="elman", input_size=160, hidden_size=1000, output_size=6000)


def run_example(*arguments):
    command = [sys.executable, str(ROOT / "examples" / "zaoshanghao.py"), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", env={**os.environ, "PYTHONUTF8": "1"}, timeout=300
    )


def log_probs_of(seed):
    """The greeting's log-probabilities under weights drawn from a seed, [100, 6000], by the server's plain twin."""
    parameters = {n: t.double().numpy() for n, t in Network.create(NETWORK, seed, "cpu").parameters().items()}
    hidden, _ = cells.forward(NETWORK, parameters, greeting().astype(float))
    return cells.log_softmax(cells.logits(parameters, hidden))


def losses(output):
    return {way: float(value) for way, value in re.findall(r"^  (alone|among others|numpy) +([\d.]+)$", output, re.M)}


def expected_loss(seed):
    """With the labels as they are told: zao in steps 1 to 30, shang in 31 to 70, hao in 71 to 100."""
    log_probs = log_probs_of(seed)
    words = {"zao": range(1, 31), "shang": range(31, 71), "hao": range(71, 101)}
    return -sum(log_probs[t - 1, CLASSES[word]] for word, steps in words.items() for t in steps)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The example as it runs by itself: its result and its picture."""
    picture = tmp_path_factory.mktemp("zaoshanghao") / "new" / "picture.png"
    result = run_example("--picture", picture)
    assert result.returncode == 0, result.stdout + result.stderr
    return result, picture


def test_the_service_and_plain_numpy_agree_alone_and_among_others(shown):
    rows = re.findall(r"^  (alone|among others) +(hidden .*)$", shown[0].stdout, re.MULTILINE)
    assert [way for way, _ in rows] == ["alone", "among others"]
    for _, row in rows:
        differences = re.findall(r"(hidden|logits|probs|log_probs) (\S+)", row)
        assert len(differences) == 4
        assert all(0 <= float(difference) < 1e-4 for _, difference in differences)


def test_others_did_share_its_batches(shown):
    assert float(re.search(r"Among 8 other callers: ([\d.]+) sequences", shown[0].stdout)[1]) > 1


def test_the_loss_is_that_of_the_labels_by_any_way(shown):
    assert losses(shown[0].stdout) == pytest.approx(
        dict.fromkeys(("alone", "among others", "numpy"), expected_loss(0)), rel=1e-5
    )


def test_what_weight_sharing_saves_and_what_a_frame_costs(shown):
    assert "7,168,000, shared by all steps; a set for each of them would be 716,800,000." in shown[0].stdout
    assert "14,320,000 floating-point operations" in shown[0].stdout


def test_the_picture_is_where_it_says(shown):
    result, picture = shown
    assert result.stdout.endswith(f"{picture}\n")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_formulas_of_the_example_are_those_of_the_plain_twin():
    xs, y = greeting(), labels()
    assert xs.shape == (100, 160)
    assert y.shape == (100,)
    small = ModelSpec(cell="elman", input_size=160, hidden_size=20, output_size=30, dtype="float64")
    parameters = {n: t.numpy() for n, t in Network.create(small, 1, "cpu").parameters().items()}
    hidden, _ = cells.forward(small, parameters, xs.astype(float))
    found = forward(parameters, xs.astype(float))
    np.testing.assert_allclose(found["hidden"], hidden, rtol=1e-12)
    np.testing.assert_allclose(found["probs"], cells.softmax(cells.logits(parameters, hidden)), rtol=1e-12)
    assert apart(found["hidden"] + 0.5, found["hidden"]) > 0.4, "it measures something"


def test_another_server_and_a_model_that_is_there_already(server_process, tmp_path):
    write_models(tmp_path / "models", {MODEL: (NETWORK, 3)})
    started = server_process("--models", tmp_path / "models")
    result = run_example("--address", started.address, "--callers", 2, "--picture", tmp_path / "picture.png")
    assert result.returncode == 0, result.stdout + result.stderr
    assert losses(result.stdout)["alone"] == pytest.approx(expected_loss(3), rel=1e-5)


def test_a_model_of_that_name_but_of_other_sizes_is_one_clear_line(server_process, tmp_path):
    write_models(tmp_path / "models", {MODEL: SMALL})
    started = server_process("--models", tmp_path / "models")
    result = run_example("--address", started.address)
    assert result.returncode == 1
    assert re.fullmatch(rf"zaoshanghao: {started.address} serves another model as '{MODEL}': .*\n", result.stderr)
