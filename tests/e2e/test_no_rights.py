"""Folders that the server may not write, or not even read: served as far as may be, else told in one line."""

import shlex
import signal
import subprocess
import sys

import grpc
import numpy as np
import pytest
import seqloom
from grpc_health.v1 import health_pb2, health_pb2_grpc
from helpers.real_server import SMALL, write_models
from seqloom_server.engine.core.folder_lock import LOCK

# A folder that cannot be written in this process' view, and a process that is no root, where this system has them.
READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || exit 99; shift; exec "$@"'
WAYS = {
    "read-only": lambda folder: ["unshare", "-Urm", "sh", "-c", READ_ONLY, "-", str(folder)],
    "no root": lambda folder: ["unshare", "-U"],
}


def may(way):
    tried = subprocess.run([*WAYS[way]("/opt"), "true"], capture_output=True, check=False)
    return pytest.mark.skipif(tried.returncode != 0, reason=f"this system has no {way}")


@pytest.fixture
def start(server_process, tmp_path, monkeypatch):
    """Starts a server of the models "m" and "small" in one of the WAYS around a folder."""
    write_models(tmp_path / "models", {"m": SMALL, "small": SMALL})
    (tmp_path / "runs").mkdir()

    executable = sys.executable

    def factory(way, folder, *options):
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec {shlex.join([*WAYS[way](folder), executable])} "$@"\n')
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        arguments = ["--models", tmp_path / "models", "--runs", tmp_path / "runs", *options]
        return server_process(*arguments, ready=False, fresh=True)

    return factory


@may("read-only")
async def test_models_that_cannot_be_written_are_served(start, tmp_path):
    (tmp_path / "models" / ".small.being-written").mkdir()
    started = start("read-only", tmp_path / "models")
    started.until_ready()
    async with seqloom.AsyncClient(started.address, timeout=60) as client:
        assert [(info.name, info.broken) for info in await client.models()] == [("m", ""), ("small", "")]
        assert len((await client.infer("small", [np.zeros((3, 5), "f4")])).outputs) == 1
        with pytest.raises(seqloom.Internal) as refused:
            await client.create_model("new", seqloom.ModelSpec("gru", 3, 4, 5))
        assert refused.value.reason == "STORAGE_FAILED"
        assert "Read-only file system" in refused.value.message
        with pytest.raises(seqloom.NotFound):
            await client.load_model("new")
    told = started.end(signal.SIGTERM)[1]
    assert "an interrupted change of model small cannot be removed: Read-only file system" in told
    assert not (tmp_path / "models" / LOCK).exists()


@may("read-only")
def test_runs_that_cannot_be_written_are_told(start, tmp_path):
    status, stderr = start("read-only", tmp_path / "runs").end()
    said = f"seqloom-server: runs: {tmp_path / 'runs'} cannot be locked: Read-only file system\n"
    assert (status, stderr) == (1, said)


@may("no root")
@pytest.mark.parametrize("path", ["m", "m/config.json", "m/model.safetensors"])
def test_a_model_that_cannot_be_read_is_that_models_matter(start, tmp_path, path):
    (tmp_path / "models" / path).chmod(0)
    started = start("no root", None)
    started.until_ready()
    with grpc.insecure_channel(started.address) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
    with seqloom.Client(started.address, timeout=60) as client:
        bad, good = client.models()
        assert (bad.name, good.name, good.broken) == ("m", "small", "")
        assert "Permission denied" in bad.broken
        assert len(client.infer("small", [np.zeros((3, 5), "f4")]).outputs) == 1
    started.end(signal.SIGTERM)
    status, stderr = start("no root", None, "--strict-models").end()
    assert (status, stderr.count("\n")) == (1, 1)
    assert stderr.startswith(f"seqloom-server: models: {tmp_path / 'models'}: m: ")


@may("no root")
@pytest.mark.parametrize("which", ["models", "runs"])
def test_a_root_that_cannot_be_read_ends_the_start_in_one_line(start, tmp_path, which):
    (tmp_path / which).chmod(0o300)  # it may be written: no lock stands in the way
    status, stderr = start("no root", None).end()
    assert (status, stderr) == (
        1,
        f"seqloom-server: {which}: {tmp_path / which}: the server cannot read or write its {which} folder: "
        "Permission denied\n",
    )
