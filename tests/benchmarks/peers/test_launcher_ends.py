"""A Triton that was started anew ends with the benchmark, too; played by a server that knows nothing but its health."""

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[3]
_PATIENCE = 60  # seconds

SERVER = f"""#!{sys.executable}
import signal, subprocess, sys
from concurrent import futures
import grpc
from grpc_health.v1 import health, health_pb2_grpc
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])  # a model's process
server = grpc.server(futures.ThreadPoolExecutor(2))
health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
server.add_insecure_port("127.0.0.1:" + next(a.split("=")[1] for a in sys.argv if a.startswith("--grpc-port=")))
server.start()
server.wait_for_termination()
"""

CLIENT = """
class InferInput: ...
class InferenceServerClient:
    def __init__(self, address): raise ConnectionError(address)
"""

BENCHMARK = """
import contextlib, os, pathlib, signal, sys, time
from benchmarks.harness.child_process import run
from benchmarks.peers.launcher import PeerFailed, Triton
folder = pathlib.Path(sys.argv[1])
class Environment:
    python, server, backends = folder / "python", folder / "server", folder
    def variables(self, **more): return os.environ | more
def main():
    triton = Triton(Environment(), folder / "weights.npz", folder / "recordings.npz", 1)
    first = triton.pid
    os.kill(first, signal.SIGKILL)
    with contextlib.closing(triton):
        try:
            triton.ask("labels", 1, 0)
        except PeerFailed:  # it is there again, and cannot answer
            print(first, triton.pid, flush=True)
            time.sleep(1000)
run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_triton_that_was_started_anew_ends_with_its_load_and_its_models_processes(
    tmp_path: pathlib.Path, by: signal.Signals
):
    (tmp_path / "tritonclient" / "grpc" / "aio").mkdir(parents=True)
    (tmp_path / "tritonclient" / "grpc" / "aio" / "__init__.py").write_text(CLIENT)
    (tmp_path / "server").write_text(SERVER)
    (tmp_path / "python").write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}:$PYTHONPATH exec {sys.executable} "$@"\n')
    for name in ("server", "python"):
        (tmp_path / name).chmod(0o755)
    np.savez(tmp_path / "recordings.npz", np.zeros((20, 160), "f4"))
    command = [sys.executable, "-c", BENCHMARK, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, text=True) as benchmark:
        first, second = map(int, benchmark.stdout.readline().split())
        assert first != second
        started = psutil.Process(benchmark.pid).children(recursive=True)
        assert second in [each.pid for each in started]
        assert len(started) >= 4  # the guard, the server, its model's process, the load
        benchmark.send_signal(by)
        benchmark.wait(_PATIENCE)
        _, left = psutil.wait_procs(started, timeout=_PATIENCE)
        for each in left:
            each.kill()
        assert left == []
