"""Certificates and tokens of a test, and servers that look at their files often."""

import pytest
from helpers.secured import Secured
from seqloom_server.rpc.security import watched_files


@pytest.fixture
def secured(tmp_path, monkeypatch) -> Secured:
    monkeypatch.setattr(watched_files, "LOOK_SECONDS", 0.01)
    return Secured(tmp_path)
