"""Starts a server in another process on free ports, and reads its /metrics."""

import contextlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

_GRACE = 30  # seconds


@dataclass(frozen=True)
class OwnServer:
    """address: HOST:PORT of gRPC. metrics_url: the URL of /metrics. pid: of the server's process."""

    address: str
    metrics_url: str
    pid: int

    def metrics(self, **labels: str) -> Counter[str]:
        """Returns the samples of /metrics by name, such as "seqloom_steps_total", summed over their other labels."""
        with urllib.request.urlopen(self.metrics_url) as reply:
            text = reply.read().decode()
        sums: Counter[str] = Counter()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if labels.items() <= sample.labels.items():
                    sums[sample.name] += sample.value
        return sums


@contextlib.contextmanager
def _until_left(command: list[str], **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """Runs a command until the block ends, and waits until it has ended."""
    # in a session of its own, where Ctrl-C does not reach it before its callers are gone
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def own_server(
    models: pathlib.Path, *options: str, launch: Callable[..., AbstractContextManager[Any]] = _until_left
) -> Iterator[OwnServer]:
    """Serves a folder of models until the block ends. Raises RuntimeError, with the server's log, if it fails.

    options: more flags of `seqloom-server`. launch: starts a command, with the arguments of
    subprocess.Popen, and ends it when its block ends.
    """
    command = [sys.executable, "-m", "seqloom_server", "--models", str(models)]
    command += ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    # settings that are meant for another server
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SEQLOOM_")}
    with tempfile.TemporaryDirectory() as runs, tempfile.TemporaryFile("w+") as log:
        command += ["--runs", runs, *options]
        with launch(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            serving = re.fullmatch(r"seqloom-server: serving on (\S+)\n", process.stdout.readline())
            log.seek(0)
            lines = log.read()
            metrics = re.search(r"metrics on (http://\S+/metrics)", lines)
            if not serving or not metrics:
                raise RuntimeError(f"the server did not start:\n{lines}")
            yield OwnServer(serving[1], metrics[1], process.pid)
