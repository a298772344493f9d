"""/metrics and /healthz for callers who ask oddly, hang up, fall silent, or come in masses."""

import contextlib
import http.client
import socket
import time

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families
from seqloom_server.web import http as web
from seqloom_server.web.http import HttpServer


@pytest.fixture
def server():
    registry = CollectorRegistry()
    Gauge("one", "A metric.", registry=registry).set(1)
    running = HttpServer("127.0.0.1:0", registry, lambda: True)
    yield running
    running.close()


def connect(server):
    host, port = server.address.split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def connect_and_wait(server):
    """Connects, and waits until that was accepted: of many at once, the system would have some try again in seconds."""
    one = connect(server)
    while one.getsockname() not in peers(server):
        time.sleep(1e-4)
    return one


def peers(server):
    """Whom the server has a connection with, but for those that close just now."""
    for connection in list(server._server._since):
        with contextlib.suppress(OSError):
            yield connection.getpeername()


def ask(server, path, method="GET", **headers):
    with contextlib.closing(http.client.HTTPConnection(server.address, timeout=60)) as connection:
        connection.request(method, path, headers=headers)
        reply = connection.getresponse()
        return reply.status, reply.getheaders(), reply.read()


@pytest.mark.parametrize("version", ["abc", "", "1.x", "1.0.0.0", "9999", "0.0.1", "1..2", "\u0661"])
@pytest.mark.parametrize("kind", ["application/openmetrics-text", "text/plain"])
def test_a_scrape_that_accepts_a_version_that_is_none_gets_its_metrics(server, kind, version, capfd):
    accept = f"{kind}; version={version}".encode()
    status, _, body = ask(server, "/metrics", Accept=accept)
    assert status == 200
    assert any(family.name == "one" for family in text_string_to_metric_families(body.decode()))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/none"])
def test_head_is_answered_as_get_is_but_for_the_body(server, path):
    status, headers, body = ask(server, path, "HEAD")
    wanted_status, wanted_headers, wanted = ask(server, path)
    assert (status, body) == (wanted_status, b"")
    assert dict(headers)["Content-Length"] == str(len(wanted))
    assert {name for name, _ in headers} == {name for name, _ in wanted_headers}


def test_callers_that_hang_up_fall_silent_or_send_a_byte_at_a_time_are_dropped_without_a_word(
    server, monkeypatch, capfd
):
    monkeypatch.setattr(web, "_SECONDS_PER_REQUEST", 0.3)
    with connect(server) as half, connect(server) as reset, connect(server) as slow:
        half.sendall(b"GET /heal")
        half.shutdown(socket.SHUT_WR)
        half.recv(1 << 16)
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        reset.sendall(b"GET /metr")
        reset.close()
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - start < 30:
                slow.sendall(b"G")
                slow.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    if not slow.recv(1):
                        break
        assert time.monotonic() - start < 30, "it was dropped however often it sent"
    with connect(server) as silent:
        assert silent.recv(1) == b""
    assert ask(server, "/healthz")[0] == 200
    assert capfd.readouterr().err == ""


def test_many_silent_connections_keep_nobody_out(server, monkeypatch):
    monkeypatch.setattr(web, "_SECONDS_PER_REQUEST", 1e9)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect_and_wait(server)) for _ in range(3 * web._MAX_CONNECTIONS)]
        for _ in range(3):
            assert ask(server, "/healthz")[::2] == (200, b"ok\n")
        assert silent[0].recv(1) == b"", "the oldest gave way"
        assert len(server._server._since) <= web._MAX_CONNECTIONS


def test_as_many_connect_at_once_as_may_be_connected():
    server = web._Server(("127.0.0.1", 0), web._Handler)  # which nobody serves yet: the system alone answers
    with contextlib.closing(server.socket), contextlib.ExitStack() as connections:
        for _ in range(web._MAX_CONNECTIONS):
            one = connections.enter_context(socket.create_connection(server.server_address, timeout=5))
            assert one.getpeername() == server.server_address


@pytest.mark.parametrize("lines", [[b"a: " + b"b" * 20_000], [b"a: b"] * 5_000], ids=["one", "many"])
def test_a_head_that_is_too_long_is_refused_and_others_are_answered(server, lines, capfd):
    with connect(server) as long:
        with contextlib.suppress(ConnectionError):  # it is closed before all is read
            long.sendall(b"\r\n".join([b"GET /metrics HTTP/1.1", *lines, b"", b""]))
        with contextlib.suppress(ConnectionError):
            assert long.recv(1 << 16)[:12] in (b"HTTP/1.0 431", b"")
    long_enough = ask(server, "/healthz", **{"X-Name": "b" * 15_000})
    assert long_enough[0] == ask(server, "/healthz")[0] == 200
    assert capfd.readouterr().err == ""
