"""seqloom-server with TLS and tokens as an operator runs it: made by its commands, told by its log."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys

import numpy as np
import pytest
import seqloom
from helpers.forked_process import ForkedProcess
from helpers.real_server import COMMAND, SMALL, write_models
from helpers.secured import Secured


@pytest.fixture
def models(tmp_path):
    write_models(tmp_path / "models", {"small": SMALL})
    return tmp_path / "models"


def command(*arguments):
    process = ForkedProcess(COMMAND, *map(str, arguments))
    printed, complaint = process.communicate(120)
    return subprocess.CompletedProcess(arguments, process.returncode, printed, complaint)


def make_token(path, name, scopes, *more):
    made = command("make-token", name, "--scopes", scopes, "--tokens", path, *more)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def test_a_token_is_made_and_its_secret_printed_once(tmp_path):
    path = tmp_path / "tokens.toml"
    secret = make_token(path, "gateway", "infer,train", "--max-streams", "500", "--steps-per-second", "1e4")
    text = path.read_text()
    assert secret not in text
    for line in ('name = "gateway"', 'scopes = ["infer", "train"]', "max_streams = 500", "steps_per_second = 10000.0"):
        assert line in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = command("make-token", "gateway", "--scopes", "infer", "--tokens", path)
    assert (again.returncode, again.stderr.count("\n"), again.stdout) == (1, 1, "")
    assert path.read_text() == text


@pytest.mark.parametrize("scopes", ["", "root", "infer,", "infer train"])
def test_wrong_scopes_are_one_clear_line(tmp_path, scopes):
    made = command("make-token", "a", "--scopes", scopes, "--tokens", tmp_path / "tokens.toml")
    assert made.returncode == 1
    assert made.stderr.startswith("seqloom-server: tokens: scopes: ")
    assert made.stderr.count("\n") == 1
    assert not (tmp_path / "tokens.toml").exists()


def test_making_a_token_loads_no_torch(tmp_path):
    code = (
        "import sys; from seqloom_server.__main__ import main;"
        f"status = main(['make-token', 'a', '--scopes', 'infer', '--tokens', {str(tmp_path / 'tokens.toml')!r}]);"
        "sys.exit(9 if 'torch' in sys.modules else status)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("option", ["listen", "http"])
def test_off_the_loopback_an_unprotected_server_is_one_clear_line_and_exit_1(server_process, models, option):
    status, stderr = server_process("--models", models, f"--{option}", "0.0.0.0:0", ready=False).end()
    assert status == 1
    assert stderr.count("\n") == 1
    assert stderr.startswith(f"seqloom-server: {option}: is 0.0.0.0:0: expected an address of the loopback")
    started = server_process("--models", models, f"--{option}", "0.0.0.0:0", "--allow-insecure")
    assert started.end(signal.SIGTERM)[0] == 0


def test_a_secured_server_off_the_loopback_serves_logs_calls_and_is_healthy(server_process, models, tmp_path):
    secured = Secured(tmp_path)
    secret = make_token(secured.tokens, "gateway", "infer")
    environment = {
        **{f"SEQLOOM_{name.upper()}": value for name, value in secured.options().items()},
        "SEQLOOM_LISTEN": "0.0.0.0:0",
        "SEQLOOM_LOG_FORMAT": "json",
    }
    started = server_process("--models", models, environment=environment)
    port = started.address.rpartition(":")[2]
    with seqloom.Client(f"localhost:{port}", token=secret, tls=secured.tls()) as client:
        assert client.infer("small", [np.zeros((3, 5), "f4")]).outputs[0].shape == (3, 3)
        with pytest.raises(seqloom.PermissionDenied) as denied:
            client.unload_model("small")
    checked = command("healthcheck", "--http", started.http_address, "--tokens", secured.tokens)
    assert (checked.returncode, checked.stdout) == (0, "ok\n")
    status, stderr = started.end(signal.SIGTERM)
    assert status == 0
    lines = [json.loads(line) for line in stderr.splitlines()]
    calls = {line["method"].rpartition("/")[2]: line for line in lines if line["logger"] == "seqloom_server.calls"}
    assert calls["StreamInfer"]["token"] == calls["UnloadModel"]["token"] == "gateway"
    assert (calls["StreamInfer"]["code"], calls["UnloadModel"]["code"]) == ("OK", "PERMISSION_DENIED")
    assert calls["UnloadModel"]["request_id"] == denied.value.request_id
    assert all(call["seconds"] >= 0 for call in calls.values())
    assert secret not in stderr
    gone = command("healthcheck", "--http", started.http_address, "--tokens", secured.tokens)
    assert (gone.returncode, gone.stderr.count("\n")) == (1, 1)


def test_a_file_that_is_missing_is_named_with_its_option(server_process, models, tmp_path):
    secured = Secured(tmp_path)
    for name, option in (("key", "--tls-key"), ("certificate", "--tls-certificate")):
        getattr(secured, name).unlink()
        options = ("--tls-certificate", secured.certificate, "--tls-key", secured.key)
        status, stderr = server_process("--models", models, *options, ready=False).end()
        assert status == 1
        assert stderr.startswith(f"seqloom-server: tls: {option}: ")


@pytest.mark.parametrize("verbosity", [None, "INFO"])
def test_handshakes_that_fail_fill_no_log_unless_they_are_asked_for(models, tmp_path, verbosity):
    secured = Secured(tmp_path)
    secured.token()
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    if verbosity is not None:
        environment["GRPC_VERBOSITY"] = verbosity
    options = [f"--{name.replace('_', '-')}={value}" for name, value in secured.options(models=models).items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "seqloom_server", *options, "--listen=127.0.0.1:0", "--http=127.0.0.1:0"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    port = int(process.stdout.readline().rpartition(":")[2])
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while connection.recv(1000):
                pass
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=60)
    assert ("andshake" in log) == (verbosity is not None), log
