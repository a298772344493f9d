"""The standing example, in a process of its own: what it prints is what another implementation computes."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from formulas import FORMULAS, apart, backward, forward, loss
from helpers.plain_twin import plain_outputs
from helpers.real_server import SMALL, write_models
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.reference import reference_forward
from seqloom_server.nn.spec import ModelSpec
from zaoshanghao import CLASSES, MODEL, ROOT, greeting, labels

# as the program makes it, whatever the mode
NETWORK = ModelSpec(cell="elman", input_size=160, hidden_size=1000, output_size=6000, precision="full")


def run_example(*arguments):
    command = [sys.executable, str(ROOT / "examples" / "zaoshanghao.py"), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", env={**os.environ, "PYTHONUTF8": "1"}, timeout=300
    )


def log_probs_of(seed):
    """The greeting's log-probabilities under weights drawn from a seed, [100, 6000], by the server's plain twin."""
    return reference_forward.log_softmax(plain_outputs(Network.create(NETWORK, seed, "cpu"), greeting())[1])


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


def test_every_gradient_of_the_service_is_that_of_the_formulas_alone_and_among_others(shown):
    rows = re.findall(r"^  (dL/\w+|delta_t) +=.* (\d\S+) +(\d\S+)$", shown[0].stdout, re.MULTILINE)
    assert [name for name, *_ in rows] == list(FORMULAS)
    differences = [float(difference) for _, *both in rows for difference in both]
    assert max(differences) < 1e-4
    assert f"The largest difference of a gradient: {max(differences):.1e}" in shown[0].stdout


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
    hidden, _ = reference_forward.forward(small, parameters, xs.astype(float))
    found = forward(parameters, xs.astype(float))
    np.testing.assert_allclose(found["hidden"], hidden, rtol=1e-12)
    np.testing.assert_allclose(
        found["probs"], reference_forward.softmax(reference_forward.logits(parameters, hidden)), rtol=1e-12
    )
    assert apart(found["hidden"] + 0.5, found["hidden"]) > 0.4, "it measures something"


def test_the_gradients_written_out_are_the_slopes_of_the_loss():
    random = np.random.default_rng(0)
    shapes = {"weight_ih_l0": (4, 3), "weight_hh_l0": (4, 4), "bias_ih_l0": 4, "bias_hh_l0": 4}
    weights = {f"rnn.{name}": random.normal(0, 0.5, shape) for name, shape in shapes.items()}
    weights |= {"output.weight": random.normal(0, 0.5, (5, 4)), "output.bias": random.normal(0, 0.5, 5)}
    xs, y = random.normal(size=(6, 3)), random.integers(0, 5, 6)
    found = backward(weights, xs, y)
    watched = {
        "dL/dx_t": xs,
        "dL/dV": weights["output.weight"],
        "dL/dU": weights["rnn.weight_ih_l0"],
        "dL/dW": weights["rnn.weight_hh_l0"],
        "dL/dc": weights["output.bias"],
        "dL/db": weights["rnn.bias_ih_l0"],
    }
    for name, values in watched.items():
        slopes = np.empty_like(values)
        for at, value in np.ndenumerate(values):
            around = []
            for values[at] in (value - 1e-6, value + 1e-6):
                around.append(loss(forward(weights, xs)["probs"], y))
            values[at] = value
            slopes[at] = (around[1] - around[0]) / 2e-6
        np.testing.assert_allclose(found[name], slopes, rtol=1e-6, atol=1e-8, err_msg=name)
    np.testing.assert_allclose(found["delta_t"].sum(axis=0), found["dL/db"])
    np.testing.assert_allclose(found["dL/ds_0"], weights["rnn.weight_hh_l0"].T @ found["delta_t"][0])


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
