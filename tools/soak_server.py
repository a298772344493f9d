"""The server of a soak in a process of its own, what it serves, and how it is measured at rest."""

import os
import pathlib
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families
from seqloom_server.nn.files import model_folder
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.reference import reference_forward
from seqloom_server.nn.spec import ModelSpec
from soak_traffic import MOVING, STEADY

SPEC = ModelSpec(cell="gru", input_size=20, hidden_size=64, output_size=12)


@dataclass
class Measured:
    """A server at rest. series: of metrics, whatever their status codes, which depend on what happened."""

    memory: int
    states: int
    descriptors: int
    threads: int
    series: int


class Server:
    """The server in a process of its own."""

    def __init__(self, folder: pathlib.Path) -> None:
        environment = {**os.environ, "SEQLOOM_LISTEN": "127.0.0.1:0", "SEQLOOM_HTTP": "127.0.0.1:0"}
        environment |= {"SEQLOOM_MODELS": str(folder / "models"), "SEQLOOM_RUNS": str(folder / "runs")}
        self.log = folder / "log"
        with open(self.log, "w") as log:
            command = [sys.executable, "-m", "seqloom_server", "--device", "cpu"]
            self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(self.log.read_text())
        self.address = line.split()[-1]
        self.http_address = re.findall(r"metrics on http://(\S+)/metrics", self.log.read_text())[0]
        self._process = psutil.Process(self.process.pid)

    def samples(self) -> list[tuple[str, dict[str, str], float]]:
        with urllib.request.urlopen(f"http://{self.http_address}/metrics") as reply:
            families = text_string_to_metric_families(reply.read().decode())
            return [(s.name, s.labels, s.value) for family in families for s in family.samples]

    def value(self, name: str) -> float:
        return sum(value for found, _, value in self.samples() if found == f"seqloom_{name}")

    def at_rest(self) -> Measured:
        """Waits until nothing is open, and measures."""
        wait_for(lambda: self.value("active_streams") == 0 and self.value("queue_items") == 0, "nothing is open")
        time.sleep(3)  # connections that were lost are closed
        series = {
            (name, *sorted((k, v) for k, v in labels.items() if k != "code")) for name, labels, _ in self.samples()
        }
        return Measured(
            memory=self._process.memory_info().rss,
            states=int(self.value("state_bytes")),
            descriptors=self._process.num_fds(),
            threads=self._process.num_threads(),
            series=len(series),
        )


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.2)


def write_models(folder: pathlib.Path) -> pathlib.Path:
    """Writes both models, and a file of sequences with what STEADY gives for each, by the formulas in numpy."""
    networks = {name: Network.create(SPEC, seed, "cpu") for seed, name in enumerate((STEADY, MOVING))}
    for name, network in networks.items():
        model_folder.save(folder / "models" / name, network)
    parameters = {name: tensor.double().numpy() for name, tensor in networks[STEADY].parameters().items()}
    random_ = np.random.default_rng(0)
    arrays, losses = {}, []
    for n in range(24):
        x = random_.standard_normal((int(random_.integers(20, 200)), SPEC.input_size)).astype("f4")
        hidden, _ = reference_forward.forward(SPEC, parameters, x.astype(float), None)
        logits = reference_forward.logits(parameters, hidden)
        losses.append((np.log(np.exp(logits).sum(1)) - logits[:, 0]).sum())
        arrays |= {f"x{n}": x, f"y{n}": logits}
    path = folder / "oracle.npz"
    np.savez(path, count=len(losses), losses=losses, **arrays)
    return path
