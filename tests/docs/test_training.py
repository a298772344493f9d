"""docs/training.md: every example runs against a real server, what it tells of limits and calls is that of the code."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
from helpers.pages import ROOT, code, section, table, text
from seqloom._training import call_delivery as sdk_calls
from seqloom_server.config import ServerConfig
from seqloom_server.engine.training import numbered_calls
from seqloom_server.errors import Reason

PAGE = "docs/training.md"
ADDRESS = "localhost:50051"


@pytest.fixture
def run_example(server_process, tmp_path):
    shutil.copytree(ROOT / "examples" / "models", tmp_path / "models")
    started = server_process("--models", tmp_path / "models", "--runs", tmp_path / "runs")

    def run(example: str):
        assert example.count(f'"{ADDRESS}"') == 1
        names = {}
        exec(compile(example.replace(ADDRESS, started.address), PAGE, "exec"), names)
        return names

    return run


def test_the_examples_run_and_give_what_the_page_says(run_example):
    gradients, chunks, bridge, run = code(PAGE)
    result = run_example(gradients)["result"]
    assert [gradient.shape for gradient in result.inputs] == [(60, 40), (25, 40)]
    assert np.isfinite(result.loss)
    assert set(result.parameters) == set(run_example(chunks)["total"])
    assert run_example(bridge)["front"].weight.grad.norm() > 0
    trained = run_example(run)
    assert trained["losses"] == sorted(trained["losses"], reverse=True)
    assert len(set(trained["losses"])) == 5
    assert (trained["info"].step, trained["info"].checkpoints, trained["version"]) == (5, ("five",), 2)


def test_its_limits_are_those_of_the_server():
    options = {field.name: field.default for field in dataclasses.fields(ServerConfig)}
    for what, default, _ in table(PAGE, "Limits and bad input"):
        assert options[what.split()[0]] == int(default.replace(",", "")), what


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (numbered_calls.MAX_REPLIES, "{:,} a client at most"),
        (int(numbered_calls._HOLD_SECONDS), "for up to {} s, `RUN_WAITS`"),
        (sdk_calls.MAX_IN_FLIGHT, "up to {} of them"),
        (sdk_calls.MAX_IN_FLIGHT_BYTES >> 20, "or {} MiB, and done in the order"),
    ],
)
def test_numbers_that_are_told_are_right(number, words):
    assert words.format(number) in " ".join(text(PAGE).split())


def test_every_reason_that_it_names_is_one():
    names = set(re.findall(r"\b[A-Z]+_[A-Z]+\b|\bOVERFLOW\b|\bOVERLOADED\b", section(PAGE, "What is guaranteed")))
    assert len(names) > 5
    assert names <= set(Reason.__members__)
