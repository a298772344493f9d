"""Triton's server with one of Seqloom's models in it, and its load, each in a process of its own until the block ends.

The environment that setup.sh made is looked for under PEERS_HOME.
"""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from programs import Program, program
from safetensors.numpy import load_file

_HERE = pathlib.Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
_START = 120  # seconds
_LAST_WORDS = 5  # seconds
_CRASHES = 10  # that a sitting bears with; it ends with a segmentation fault as many streams begin, now and then


class PeerMissing(Exception):
    """There is no environment of the peers; the text says how to make one."""


class PeerFailed(Exception):
    """Triton did not start, or ended too often; the text is what it said."""


class Environment:
    """What setup.sh made."""

    def __init__(self) -> None:
        home = pathlib.Path(os.environ.get("PEERS_HOME") or pathlib.Path.home() / ".cache" / "seqloom-peers")
        self.python = home / "venv" / "bin" / "python"
        self.backends = home / "backends"
        if not (self.python.exists() and (self.backends / "python" / "triton_python_backend_stub").exists()):
            how = "`make peers` makes it, see benchmarks/peers/README.md"
            raise PeerMissing(f"Triton is left out: no environment in {home}; {how}")
        paths = subprocess.check_output([self.python, "-c", _PATHS], text=True).split("\n")
        self._site, self._libraries = map(pathlib.Path, paths[:2])

    @property
    def server(self) -> pathlib.Path:
        """The program."""
        return self._site / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    def variables(self, **more: str) -> dict[str, str]:
        """The environment variables that the server and the processes of its models run with."""
        return {
            **os.environ,
            "LD_LIBRARY_PATH": f"{self._site / 'nvidia_pytriton.libs'}:{self._libraries}",
            "PATH": f"{self.python.parent}:{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(self._site),
            "PYTHONDONTWRITEBYTECODE": "1",
            **more,
        }


_PATHS = "import sysconfig; print(sysconfig.get_paths()['purelib']); print(sysconfig.get_config_var('LIBDIR'))"


class Triton:
    """A Triton that serves one model, and the load for it. crashes: how often it had to be started again."""

    def __init__(self, environment: Environment, weights: pathlib.Path, recordings: pathlib.Path) -> None:
        self.crashes = 0
        self._environment, self._weights, self._recordings = environment, weights, recordings
        self._running = contextlib.ExitStack()
        self._start()

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def ask(self, *question: Any) -> Any:
        """Asks its load, see load.py, from the beginning where Triton has crashed. Raises PeerFailed."""
        while "failed" in (answer := self._answer(*question)):
            if not self._crashed() or self.crashes == _CRASHES:
                raise PeerFailed(f"Triton failed: {answer['failed']}\n{self._said()}")
            self.crashes += 1
            print(f"Triton ended with status {self._process.returncode}; it is started again", file=sys.stderr)
            self._start()
            self._answer("labels", 8, 0)  # the first calls of a network are slow, and nobody's round
        return answer

    def _answer(self, *question: Any) -> Any:
        try:
            return self._load.ask([self.address, *question])
        except (RuntimeError, ValueError) as error:  # the load itself has ended
            raise PeerFailed(f"the load of Triton failed: {error}\n{self._said()}") from error

    def _crashed(self) -> bool:
        """A process that ends closes its connections before it is gone."""
        try:
            self._process.wait(_LAST_WORDS)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        self._running.close()

    def _start(self) -> None:
        self._running.close()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the rest of what runs
        self._running.callback(self._log.close)
        self.address = f"127.0.0.1:{_free_port()}"
        command = [str(self._environment.server), f"--model-repository={_HERE / 'models'}"]
        command += [f"--backend-directory={self._environment.backends}"]
        command += ["--grpc-address=127.0.0.1", f"--grpc-port={self.address.rpartition(':')[2]}"]
        command += ["--allow-http=false", "--allow-metrics=false", "--log-warning=false", "--log-info=false"]
        variables = self._environment.variables(WEIGHTS=str(self._weights))
        self._process = subprocess.Popen(
            command, env=variables, stdout=self._log, stderr=self._log, start_new_session=True
        )
        self._running.callback(self._process.wait)
        self._running.callback(self._kill)
        try:
            self._wait_until_ready()
            paths = os.pathsep.join(str(_ROOT / name) for name in ("client", "benchmarks", "examples"))
            variables = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
            load = program(
                "peers/load",
                self._recordings,
                python=self._environment.python,
                variables=variables,
                stderr=self._log,
            )
            self._load: Program = self._running.enter_context(load)
        except BaseException:
            self._running.close()
            raise

    def _kill(self) -> None:
        """Also the processes of its models, which outlive a crash."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

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
        raise PeerFailed(f"Triton did not start:\n{self._said()}")

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()[-4000:]


@contextlib.contextmanager
def tritons(models: dict[str, pathlib.Path], recordings: list[np.ndarray]) -> Iterator[dict[str, Triton]]:
    """Yields a Triton for each of the models, under its name.

    models: the folder of each, with its model.safetensors. recordings: [frames, D] float32 each, which the loads send.
    Raises PeerMissing and PeerFailed.
    """
    environment = Environment()
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        spoken = folder / "recordings.npz"
        np.savez(spoken, *recordings)
        running = {}
        for name, path in models.items():
            weights = folder / f"{name}.npz"
            np.savez(weights, **load_file(path / "model.safetensors"))
            running[name] = Triton(environment, weights, spoken)
            stack.callback(running[name].close)
        yield running


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
