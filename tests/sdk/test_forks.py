"""Clients and forks: what was forked before the first client works, what was forked later is told so at once."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from helpers.real_server import SMALL, write_models

PROGRAM = pathlib.Path(__file__).with_name("forked.py")
ENDS = ("end of", "close")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")


@pytest.fixture
def forked(server_process, tmp_path):
    """What the program tells."""
    write_models(tmp_path, {"small": SMALL})
    address = server_process("--models", tmp_path).address

    def run(what):
        done = subprocess.run(
            [sys.executable, PROGRAM, what, address], stdout=subprocess.PIPE, text=True, check=True, timeout=600
        )
        return json.loads(done.stdout)

    return run


def test_in_a_fork_of_a_process_with_clients_everything_is_refused_at_once_and_ends_quietly(forked):
    told = forked("used")
    for child in told["children"]:
        assert isinstance(child, dict), child
        assert child.pop("threads") == 1  # gRPC has started none on the connections of the parent
        for name, outcome in child.items():
            ends = any(word in name for word in ENDS)
            assert (name, outcome) == (name, "done" if ends else "FORKED")
    assert told["exits"] == [0] * len(told["exits"])
    assert told["parent"] == [3, 1, 2, 3]  # steps, outputs, the run's step, steps


def test_a_process_that_was_forked_before_the_first_client_has_clients_of_its_own(forked):
    told = forked("first")
    works = [[3, 3], [3, 3]]
    assert told["children"] == [works] * 3
    assert told["unused"] == "used"
    assert told["parent"] == works
    assert told["late"].startswith("InvalidArgument: gRPC does not work in a process that was forked")
