"""Connections in masses, silent, idle or with large headers: bounded in all and by address, and others work on."""

import contextlib
import itertools
import socket
import time
import urllib.request

import grpc
import numpy as np
import psutil
import pytest
import seqloom
from grpc_health.v1 import health_pb2, health_pb2_grpc
from helpers.raw_http2 import RawConnection
from helpers.real_server import COMMAND, SMALL, total, write_models
from prometheus_client.parser import text_string_to_metric_families

X = [np.ones((3, 5), "f4")]
ELSEWHERE = "127.0.0.2"  # another address of this machine


@pytest.fixture
def models(tmp_path):
    write_models(tmp_path / "models", {"small": SMALL})
    return tmp_path / "models"


def works(client):
    return len(client.infer("small", X, timeout=60).outputs[0]) == 3


def healthz(started):
    with urllib.request.urlopen(f"http://{started.http_address}/healthz", timeout=30) as reply:
        return reply.read() == b"ok\n"


def value(started, name):
    with urllib.request.urlopen(f"http://{started.http_address}/metrics") as reply:
        return total(text_string_to_metric_families(reply.read().decode()), name)


def connect(stack, address, source=ELSEWHERE):
    """A connection that says nothing, or None if it was refused."""
    host, port = address.split(":")
    with contextlib.suppress(OSError):
        return stack.enter_context(socket.create_connection((host, int(port)), timeout=60, source_address=(source, 0)))


def closed(connection):
    """Whether the server has closed it; takes what it has sent."""
    connection.setblocking(False)
    try:
        while connection.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_silent_connections_never_use_up_the_files(server_process, models):
    """The process may open 300 files; four times as many connections are tried."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))"
    started = server_process("--models", models, "--handshake-seconds", 600, program=f"{limit}\n{COMMAND}")
    process = psutil.Process(started.process.pid)
    with contextlib.ExitStack() as stack, seqloom.Client(started.address) as client:
        assert works(client)
        tried = [connect(stack, started.address) for _ in range(1200)]
        until(lambda: value(started, "connections") <= 1 + 112)  # three quarters of 150
        assert sum(connection is not None and not closed(connection) for connection in tried) <= 113
        assert process.num_fds() < 250
        assert healthz(started)
        assert works(client)
        client.create_model("made", seqloom.ModelSpec(cell="elman", input_size=5, hidden_size=7, output_size=3))
        with seqloom.Client(started.address) as newcomer:
            assert works(newcomer)
    assert "max_connections: 150 of 4096 fit" in "".join(started.stderr)


def test_the_limit_of_open_files_is_raised_for_the_connections(server_process, models):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (300, 2000))"
    started = server_process("--models", models, "--max-connections", 400, program=f"{limit}\n{COMMAND}")
    assert psutil.Process(started.process.pid).rlimit(psutil.RLIMIT_NOFILE) == (656, 2000)
    assert "fit" not in "".join(started.stderr)


def test_one_address_leaves_room_for_others_and_its_first_connections_stay(server_process, models):
    started = server_process(
        "--models", models, "--max-connections", 60, "--max-connections-per-address", 40, "--handshake-seconds", 600
    )
    with contextlib.ExitStack() as stack, seqloom.Client(started.address) as client:
        assert works(client)
        first = [connect(stack, started.address) for _ in range(30)]
        until(lambda: value(started, "connections") == 31)
        time.sleep(1.5)  # until the server has seen them
        rest = [connect(stack, started.address) for _ in range(200)]
        until(lambda: value(started, "connections") == 41)
        assert not any(map(closed, first))
        assert sum(not closed(one) for one in rest if one is not None) == 10
        assert value(started, "connections_closed_total") > 0
        assert works(client)
        with seqloom.Client(started.address) as newcomer:
            assert works(newcomer)


def test_a_handshake_that_does_not_end_is_ended(server_process, models):
    started = server_process("--models", models, "--handshake-seconds", 1, "--max-connections", 20)
    with contextlib.ExitStack() as stack, seqloom.Client(started.address) as client:
        assert works(client)
        silent = [connect(stack, started.address) for _ in range(15)]
        slow = connect(stack, started.address)
        until(lambda: value(started, "connections") == 17)
        for byte in itertools.cycle(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[:10]):
            if closed(slow):
                break
            with contextlib.suppress(OSError):
                slow.send(bytes([byte]))
            time.sleep(0.05)
        until(lambda: all(map(closed, silent)))
        assert works(client)
        until(lambda: value(started, "connections") == 1)


def test_a_connection_without_calls_is_closed_and_its_client_connects_again(server_process, models):
    started = server_process("--models", models, "--connection-idle-seconds", 1)
    with RawConnection(started.address) as idle, seqloom.Client(started.address) as client:
        with client.stream("small") as stream:
            stream.send(X[0])
            assert idle.closed.wait(60)
            stream.send(X[0])
            assert len(stream.receive().outputs) == 3, "it has a call, and stays"
        until(lambda: value(started, "connections") <= 1)
        for _ in range(3):
            assert works(client)
            time.sleep(1.3)


def test_headers_beyond_the_bound_fail_their_call_alone(server_process, models):
    started = server_process("--models", models, "--max-header-bytes", 4096)
    with grpc.insecure_channel(started.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for size, fits in ((3000, True), (5000, False), (100_000, False), (3000, True)):
            call = lambda size=size: check(  # noqa: E731
                health_pb2.HealthCheckRequest(), timeout=30, metadata=[("x-name", "x" * size)]
            )
            if fits:
                assert call().status == health_pb2.HealthCheckResponse.SERVING
                continue
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "Traceback" not in "".join(started.stderr)
