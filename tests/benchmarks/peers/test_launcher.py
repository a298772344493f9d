"""Triton as the benchmark runs it, where its environment is: answers, numbers, and what follows when it dies."""

import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.loads.workload import synthetic
from benchmarks.peers.environment import Environment, PeerMissing
from benchmarks.peers.launcher import PeerFailed, Triton, tritons

_PROGRAM = ["-m", "benchmarks.bench_server"]

try:
    Environment()
except PeerMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)

pytestmark = pytest.mark.slow


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.output = torch.nn.RNN(160, 24), torch.nn.Linear(24, 7)

    def labels(self, frames: np.ndarray) -> list[int]:
        hidden, _ = self.rnn(torch.from_numpy(frames).to(self.output.weight.dtype))
        return self.output(hidden).argmax(1).tolist()


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network()


class OnceOnly(Environment):
    """Its server starts once."""

    starts = 0

    @property
    def server(self) -> pathlib.Path:
        self.starts += 1
        return super().server if self.starts == 1 else pathlib.Path(sys.executable)  # which knows no such options


@pytest.fixture(scope="module")
def triton(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    folder = tmp_path_factory.mktemp("model")
    save_file(network.state_dict(), folder / "model.safetensors")
    with tritons({"tiny": folder}, synthetic(64), {"tiny": 1}) as running:
        yield running["tiny"]


def test_it_serves_the_weights_it_was_given_to_whole_recordings_and_to_streams(triton: Triton, network: Network):
    exact = Network().double()
    exact.load_state_dict(network.state_dict())
    expected = [label for frames in synthetic(64)[:20] for label in exact.labels(frames)]
    answers = triton.ask("labels", 20, 0)
    assert answers.keys() == {"whole", "streamed"}
    for labels in answers.values():
        assert np.mean(np.concatenate(labels) == expected) > 0.999


@pytest.mark.parametrize("work", ["callers", "streams", "real_time"])
def test_every_kind_of_work_has_the_numbers_that_ours_has(triton: Triton, work: str):
    taken = triton.ask(work, 3, 0.5)
    assert taken["frames_per_second"] > 0
    assert 0 < taken["p50_ms"] <= taken["p99_ms"] <= taken["max_ms"]
    if work == "real_time":
        assert taken["frames_per_second"] <= 1.5 * 3 * 100  # no faster than speech


def test_when_it_dies_it_is_started_again_and_asked_again(triton: Triton, network: Network):
    before, crashes = triton.pid, triton.crashes["labels", 2]
    os.kill(before, signal.SIGKILL)
    assert len(triton.ask("labels", 2, 0)["whole"]) == 2
    assert triton.pid != before
    assert triton.crashes["labels", 2] == crashes + 1


@pytest.mark.parametrize("dies", ["its load", "it, and does not start again"])
def test_where_it_cannot_go_on_it_is_given_up_and_says_so_whenever_it_is_asked(
    network: Network, tmp_path: pathlib.Path, dies: str
):
    np.savez(tmp_path / "weights.npz", **{name: value.numpy() for name, value in network.state_dict().items()})
    np.savez(tmp_path / "recordings.npz", *synthetic(8))
    given_up = Triton(OnceOnly(), tmp_path / "weights.npz", tmp_path / "recordings.npz", 1)
    try:
        if dies == "its load":
            (load,) = [each for each in psutil.Process().children() if str(tmp_path) in each.cmdline()[-1]]
            load.kill()
            load.wait()
        else:
            os.kill(given_up.pid, signal.SIGKILL)
        for told in ("load|start", "given up", "given up"):
            with pytest.raises(PeerFailed, match=told):
                given_up.ask("labels", 2, 0)
        assert given_up.crashed().endswith("given up")
        assert not psutil.pid_exists(given_up.pid)
    finally:
        given_up.close()


def test_it_stands_beside_seqloom_in_the_table(tmp_path: pathlib.Path):
    command = [sys.executable, *_PROGRAM, "--quick", "--seconds", "0.1", "--only", "callers"]
    command += ["--callers", "2", "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text())
    assert "of the same labels" in content["conditions"]["Triton"]
    rows = {(row["work"], row["model"]): row for row in content["rows"]}
    for model, goal in (("H=1000 O=6000", 1.15), ("H=64 O=40", 1.5)):
        served = rows["whole recordings, 2 callers, beside Triton", model]
        theirs = rows["Triton: whole recordings, 2 callers", model]
        expected = served["values"]["frames_per_second"] / theirs["values"]["frames_per_second"]
        assert served["ratio"] == pytest.approx(expected, rel=1e-2)
        assert served["goal"] == goal
