"""deploy/first_start.sh: starts at once, or killed at any point, leave a certificate with its key, and a good token."""

import os
import pathlib
import shutil
import ssl
import stat
import subprocess
import sys

import pytest
from helpers.pages import ROOT
from seqloom_server.rpc.security.tokens import parse

pytestmark = pytest.mark.skipif(
    not shutil.which("openssl") or not shutil.which("flock"), reason="the machine has no openssl or no flock"
)


@pytest.fixture
def start(tmp_path):
    """Begins a start in a folder of its own, with a command seqloom-server that makes tokens and serves nothing."""
    secrets, bin_ = tmp_path / "secrets", tmp_path / "bin"
    secrets.mkdir()
    bin_.mkdir()
    script = bin_ / "first_start.sh"
    script.write_text((ROOT / "deploy" / "first_start.sh").read_text().replace("/secrets", str(secrets)))
    server = bin_ / "seqloom-server"
    command = f'[ "${{1:-}}" = make-token ] || exit 0\nexec {sys.executable} -m seqloom_server "$@"\n'
    server.write_text(f"#!/bin/sh\n{command}")
    server.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "SEQLOOM_TLS_CERTIFICATE": str(secrets / "server.pem"),
        "SEQLOOM_TOKENS": str(secrets / "tokens.toml"),
    }
    return secrets, lambda: subprocess.Popen(["sh", str(script)], env=environment)


def check(secrets: pathlib.Path):
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(secrets / "server.pem", secrets / "server.key")
    token = (secrets / "token").read_text().strip()
    assert parse((secrets / "tokens.toml").read_bytes()).find(token).name == "first"
    for name in ("server.key", "token", "tokens.toml"):
        assert stat.S_IMODE((secrets / name).stat().st_mode) == 0o600
    assert {path.name for path in secrets.iterdir()} == {".lock", "server.pem", "server.key", "token", "tokens.toml"}


def test_starts_at_once_leave_a_key_that_is_the_certificates_and_a_token_that_is_good(start):
    secrets, begin = start
    assert [process.wait() for process in [begin() for _ in range(4)]] == [0] * 4
    check(secrets)


@pytest.mark.parametrize("left", [["server.key"], ["server.key", "server.pem", "token"]])
def test_what_a_killed_start_left_is_made_anew(start, left):
    secrets, begin = start
    for name in left:
        (secrets / name).write_text("of another start")
    if "server.pem" in left:
        (secrets / "server.pem").unlink()
    assert begin().wait() == 0
    check(secrets)


def test_what_is_there_stays(start):
    secrets, begin = start
    assert begin().wait() == 0
    (secrets / "token").unlink()  # which its owner has noted elsewhere
    before = {path.name: path.read_bytes() for path in secrets.iterdir()}
    assert begin().wait() == 0
    assert {path.name: path.read_bytes() for path in secrets.iterdir()} == before
