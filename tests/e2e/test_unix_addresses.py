"""A server at a unix socket: served and called like one at a port, and its socket is its own."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import seqloom
from helpers.real_server import SMALL, write_models


@pytest.fixture
def folder(tmp_path_factory):
    """One whose path is short enough for a socket in it; it has the folder of the models as well."""
    folder = tmp_path_factory.mktemp("s")
    write_models(folder / "models", {"small": SMALL})
    return folder


def healthcheck(address):
    return subprocess.run(
        [sys.executable, "-m", "seqloom_server", "healthcheck", "--address", address],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def check_serves(address):
    with seqloom.Client(address, timeout=30) as client:
        assert client.infer("small", [np.zeros((4, 5))]).outputs[0].shape == (4, 3)
        with client.stream("small") as stream:
            assert [len(chunk) for chunk in stream.run([np.zeros((2, 5))] * 3)] == [2, 2, 2]
    checked = healthcheck(address)
    assert (checked.returncode, checked.stdout) == (0, "SERVING\n")


@pytest.mark.parametrize("form", ["unix:{}", "unix://{}"])
def test_a_unix_socket_is_served_called_and_removed_at_the_end(server_process, folder, form):
    address = form.format(folder / "a.sock")
    started = server_process("--models", folder / "models", "--listen", address)
    assert started.address == address
    check_serves(address)
    status, _ = started.end(signal.SIGTERM)
    assert status == 0
    assert not (folder / "a.sock").exists()
    gone = healthcheck(address)
    assert gone.returncode == 1
    assert gone.stderr.count("\n") == 1


def test_a_name_in_the_abstract_namespace_is_served_and_called(server_process, folder):
    address = f"unix-abstract:seqloom-test-{os.getpid()}"
    started = server_process("--models", folder / "models", "--listen", address)
    assert started.address == address
    check_serves(address)
    status, stderr = server_process("--models", folder / "models", "--listen", address, ready=False).end()
    assert (status, stderr) == (1, f"seqloom-server: cannot listen on {address} for gRPC: Address already in use\n")
    check_serves(address)


def test_a_socket_that_another_server_listens_on_is_refused_and_stays_its_own(server_process, folder):
    address = f"unix:{folder}/a.sock"
    server_process("--models", folder / "models", "--listen", address)
    inode = (folder / "a.sock").stat().st_ino
    status, stderr = server_process("--models", folder / "models", "--listen", address, ready=False).end()
    assert (status, stderr) == (1, f"seqloom-server: cannot listen on {address} for gRPC: Address already in use\n")
    assert (folder / "a.sock").stat().st_ino == inode
    check_serves(address)


def test_the_socket_of_a_server_that_was_killed_is_no_obstacle(server_process, folder):
    address = f"unix:{folder}/a.sock"
    server_process("--models", folder / "models", "--listen", address).end(signal.SIGKILL)
    assert (folder / "a.sock").is_socket()
    server_process("--models", folder / "models", "--listen", address)
    check_serves(address)


def test_a_file_that_is_no_socket_is_never_removed(server_process, folder):
    (folder / "notes").write_text("precious")
    address = f"unix:{folder}/notes"
    status, stderr = server_process("--models", folder / "models", "--listen", address, ready=False).end()
    assert status == 1
    assert stderr == f"seqloom-server: cannot listen on {address} for gRPC: the file exists and is not a socket\n"
    assert (folder / "notes").read_text() == "precious"


def test_a_server_that_cannot_start_leaves_no_socket(server_process, folder):
    address = f"unix:{folder}/a.sock"
    first = server_process("--models", folder / "models")
    options = ("--models", folder / "models", "--listen", address, "--http", first.http_address)
    status, _ = server_process(*options, ready=False).end()
    assert status == 1
    assert not (folder / "a.sock").exists()


def test_a_health_check_of_no_address_is_one_clear_line():
    wrong = healthcheck("http://localhost:50051")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("seqloom-server: --address: is 'http://localhost:50051': expected HOST:PORT")
    assert wrong.stderr.count("\n") == 1
