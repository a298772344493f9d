"""A real Prometheus that scrapes a server under the rules of deploy/, and promtool; tests that need them are skipped
where `make prometheus` could not get them."""

import contextlib
import json
import math
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from helpers.pages import ROOT

DEPLOY = ROOT / "deploy"


def program(name: str) -> str:
    """The path of prometheus or promtool; skips the test where there is none."""
    own = pathlib.Path(sys.prefix) / "prometheus" / name
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here: make prometheus")
    return found


@dataclass(frozen=True)
class Prometheus:
    """One that runs. address: HOST:PORT."""

    address: str

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The labels and values as of now; raises ValueError for what is no PromQL."""
        words = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"http://{self.address}/api/v1/query?{words}", timeout=10) as reply:
                result = json.load(reply)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{expression}: {error.read().decode()}") from None
        return [(sample["metric"], float(sample["value"][1])) for sample in result]

    def numbers(self, expression: str) -> list[float]:
        """The values that are numbers."""
        return [value for _, value in self.query(expression) if math.isfinite(value)]


@contextlib.contextmanager
def scraping(target: str, folder: pathlib.Path) -> Iterator[Prometheus]:
    """Starts a Prometheus with deploy/'s configuration and rules, on `target` and quicker; alerts wait for 1 s."""
    config = (DEPLOY / "prometheus.yml").read_text()
    assert config.count("server:9464") == 1
    assert len(re.findall(r"_interval: 5s$", config, re.MULTILINE)) == 2
    config = config.replace("server:9464", target).replace("_interval: 5s", "_interval: 250ms")
    (folder / "prometheus.yml").write_text(config)
    rules = (DEPLOY / "rules.yml").read_text()
    (folder / "rules.yml").write_text(re.sub(r"for: \d+m$", "for: 1s", rules, flags=re.MULTILINE))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [program("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    log = folder / "log"
    with open(log, "w") as output:
        process = subprocess.Popen(
            [*command, f"--web.listen-address={address}"],
            cwd=folder,
            env={**os.environ, "GOMAXPROCS": "1"},
            stdout=output,
            stderr=output,
        )
    try:
        wait_for(lambda: _ready(address, process, log), "Prometheus is ready")
        yield Prometheus(address)
    finally:
        process.kill()
        process.wait()


def _ready(address: str, process: subprocess.Popen[bytes], log: pathlib.Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5):
            return True
    except OSError:
        return False


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Returns when condition() holds; raises TimeoutError rather than wait for ever."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.1)
