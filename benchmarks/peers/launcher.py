"""Triton's server with one of Seqloom's models in it, and its load, each in a process of its own."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from safetensors.numpy import load_file

from benchmarks.harness.child_process import ROOT, Program, child_process, program
from benchmarks.peers.environment import Environment

_HERE = pathlib.Path(__file__).resolve().parent
_MODELS = _HERE / "models"
_SHARED_MEMORY = pathlib.Path("/dev/shm")
_START = 120  # seconds
_LAST_WORDS = 5  # seconds
_TRIES = 3  # of one question
_WARM = 0.5  # seconds
_CRASHES = 20  # that a sitting bears with
_ENDED = (RuntimeError, ValueError, OSError)
"""What talking to a program raises that has ended, or did not start: no answer, half an answer, a broken pipe."""
_POOL = 4096
"""Requests whose memory Triton keeps for the next ones. Left to its own 8 it ends with a segmentation fault where there
are hundreds of streams (README.md)."""


class PeerFailed(Exception):
    """Triton or its load did not start, failed or crashed too often; the text is what they said."""


class Triton:
    """A Triton that serves one model, and the load for it.

    threads: torch's. models: the repository of its models. crashes: how often it had to be started again, by what it
    was asked: work and how many callers or streams.
    """

    def __init__(
        self,
        environment: Environment,
        weights: pathlib.Path,
        recordings: pathlib.Path,
        threads: int,
        models: pathlib.Path = _MODELS,
    ) -> None:
        self.crashes: Counter[tuple[str, float]] = Counter()
        self._given_up = False
        self._environment, self._recordings, self._models = environment, recordings, models
        self._variables = environment.variables(WEIGHTS=str(weights), THREADS=str(threads))
        self._running = contextlib.ExitStack()
        self._start()

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def ask(self, work: str, count: float, seconds: float) -> Any:
        """Asks its load, see load.py, from the beginning where Triton has crashed.

        Raises PeerFailed where it crashes at every try, and is started again then; where it lives and cannot answer;
        and for good where its load has ended, it does not start again, or has crashed too often.
        """
        if self._given_up:
            raise PeerFailed("Triton was given up before")
        for _ in range(_TRIES):
            if "failed" not in (answer := self._answer(work, count, seconds)):
                return answer
            told = f"Triton failed at {work} of {count}: {answer['failed']}\n{self._said()}"
            if not self._crashed():
                raise PeerFailed(told)
            if self.crashes.total() == _CRASHES:
                raise self._give_up(told)
            self.crashes[work, count] += 1
            print(f"Triton ended with status {self._process.returncode}; it is started again", file=sys.stderr)
            self._start()
            self._answer("labels", 8, 0)  # the first calls of a network are slow, and nobody's round
            self._answer(work, count, min(seconds, _WARM))
        raise PeerFailed(told)

    def crashed(self, work: str = "") -> str:
        """At what it crashed and how often, or at this work only, in words, and whether it is given up; else ""."""
        found = sorted(what for what in self.crashes if what[0].startswith(work))
        told = [f"{self.crashes[kind, count]} at {kind} of {count}" for kind, count in found]
        return ", ".join([*told, "given up"] if self._given_up else told)

    def _answer(self, *question: Any) -> Any:
        try:
            return self._load.ask([self.address, *question])
        except _ENDED as error:
            raise self._give_up(f"the load of Triton failed: {error}\n{self._said()}") from error

    def _crashed(self) -> bool:
        """A process that ends closes its connections before it is gone."""
        try:
            self._process.wait(_LAST_WORDS)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        self._running.close()

    def _give_up(self, told: str) -> PeerFailed:
        """Ends what still runs; the error is to be raised."""
        self._given_up = True
        self.close()
        return PeerFailed(told)

    def _start(self) -> None:
        self.close()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the rest of what runs
        self._running.callback(self._log.close)
        self.address = f"127.0.0.1:{_free_port()}"
        command = [str(self._environment.server), f"--model-repository={self._models}"]
        command += [f"--backend-directory={self._environment.backends}"]
        command += ["--grpc-address=127.0.0.1", f"--grpc-port={self.address.rpartition(':')[2]}"]
        command += ["--allow-http=false", "--allow-metrics=false", "--log-warning=false", "--log-info=false"]
        command += [f"--grpc-infer-allocation-pool-size={_POOL}"]
        self._shared = f"seqloom-peer-{uuid.uuid4().hex}"
        command += [f"--backend-config=python,shm-region-prefix-name={self._shared}"]
        self._running.callback(self._forget_memory)
        try:
            started = child_process(command, grace=0, env=self._variables, stdout=self._log, stderr=self._log)
            self._process = self._running.enter_context(started)  # with its models' processes, which outlive a crash
            self._wait_until_ready()
            variables = {**os.environ, "PYTHONPATH": str(ROOT / "client"), "PYTHONDONTWRITEBYTECODE": "1"}
            load = program(
                "peers.load",
                self._recordings,
                python=self._environment.python,
                variables=variables,
                stderr=self._log,
            )
            self._load: Program = self._running.enter_context(load)
        except _ENDED as error:
            raise self._give_up(f"Triton or its load did not start: {error}\n{self._said()}") from error
        except BaseException:
            self.close()
            raise

    def _forget_memory(self) -> None:
        """What its models' processes shared with it."""
        for region in _SHARED_MEMORY.glob(f"{self._shared}*"):
            region.unlink()

    def _wait_until_ready(self) -> None:
        with grpc.insecure_channel(self.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for _ in range(_START):
                try:
                    status = health.Check(health_pb2.HealthCheckRequest(), timeout=1, wait_for_ready=True).status
                    if status == health_pb2.HealthCheckResponse.SERVING:
                        return
                except grpc.RpcError:
                    if self._process.poll() is not None:
                        break
        raise self._give_up(f"Triton did not start:\n{self._said()}")

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()[-4000:]


@contextlib.contextmanager
def tritons(
    models: dict[str, pathlib.Path],
    recordings: list[np.ndarray],
    threads: Mapping[str, int],
    queue_policy: str = "",
) -> Iterator[dict[str, Triton]]:
    """Yields a Triton for each of the models, under its name.

    models: the folder of each, with its model.safetensors. recordings: [frames, D] float32 each, which the loads send.
    threads: torch's in each; 0 leaves them to it. queue_policy: of its queue of whole sequences, in the words of its
    configuration; by default all wait until they are served. Raises PeerMissing and PeerFailed.
    """
    environment = Environment()
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        spoken = folder / "recordings.npz"
        np.savez(spoken, *recordings)
        served = _with_policy(folder, queue_policy) if queue_policy else _MODELS
        running = {}
        for name, path in models.items():
            weights = folder / f"{name}.npz"
            np.savez(weights, **load_file(path / "model.safetensors"))
            running[name] = Triton(environment, weights, spoken, threads[name], served)
            stack.callback(running[name].close)
        yield running


def _with_policy(folder: pathlib.Path, queue_policy: str) -> pathlib.Path:
    """A copy of the models within a folder, where the queue of whole sequences has that policy, and of the network."""
    (folder / _HERE.name).mkdir()
    shutil.copy(_HERE / "network.py", folder / _HERE.name)
    models = shutil.copytree(_MODELS, folder / _HERE.name / _MODELS.name)
    config = models / "rnn" / "config.pbtxt"
    batching = "dynamic_batching {"
    config.write_text(config.read_text().replace(batching, f"{batching} default_queue_policy {{ {queue_policy} }}"))
    return models


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
