"""AddressBound on sockets of the test's own: what is one address, what is closed, what is never touched."""

import contextlib
import os
import socket
import threading
import time

import pytest
from seqloom_server.rpc.connections.address_bound import AddressBound, connections_to, shut_down


@contextlib.contextmanager
def listening(family=socket.AF_INET, host="127.0.0.1"):
    """(port, list of accepted connections) of a socket that accepts until the end."""
    accepted = []
    with socket.create_server((host, 0), family=family, backlog=100, dualstack_ipv6=host == "::") as server:

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    accepted.append(server.accept()[0])

        thread = threading.Thread(target=accept)
        thread.start()
        yield server.getsockname()[1], accepted
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in accepted:
        connection.close()


def connect(stack, port, host="127.0.0.1", source=None):
    return stack.enter_context(
        socket.create_connection((host, port), timeout=30, source_address=source and (source, 0))
    )


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def has_ended(connection):
    connection.settimeout(0)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False


@pytest.mark.parametrize(
    ("family", "host", "to", "seen"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::1", "::1", "::/64"),
        (socket.AF_INET6, "::", "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::", "::1", "::/64"),
    ],
)
def test_an_address_is_that_of_the_client(family, host, to, seen):
    if family is socket.AF_INET6 and not socket.has_dualstack_ipv6():
        pytest.skip("there is no IPv6")
    with listening(family, host) as (port, accepted), contextlib.ExitStack() as stack:
        assert dict(connections_to(port)) == {}
        connect(stack, port, to)
        until(lambda: len(accepted) == 1)
        assert dict(connections_to(port)) == {os.fstat(accepted[0].fileno()).st_ino: seen}


def test_the_last_connections_of_an_address_are_closed_and_no_others():
    counted = []
    with (
        listening() as (port, accepted),
        listening() as (other_port, _),
        contextlib.ExitStack() as stack,
        contextlib.closing(AddressBound(port, 3, counted.append)),
    ):
        first = [connect(stack, port) for _ in range(3)]
        elsewhere = [connect(stack, other_port) for _ in range(9)]
        until(lambda: len(accepted) == 3)
        time.sleep(1.5)  # it has looked
        neighbours = [connect(stack, port, source="127.0.0.2") for _ in range(3)]
        surplus = [connect(stack, port) for _ in range(5)]
        until(lambda: all(map(has_ended, surplus)))
        assert not any(map(has_ended, [*first, *neighbours, *elsewhere]))
        assert sum(counted) == 5
        for connection in accepted[:3] + accepted[6:]:
            connection.close()  # there is room again
        until(lambda: all(map(has_ended, first)))
        again = [connect(stack, port) for _ in range(3)]
        time.sleep(1.5)
        assert not any(map(has_ended, again))


def test_a_socket_of_another_process_is_never_touched():
    with listening() as (port, accepted), contextlib.ExitStack() as stack:
        connect(stack, port)
        until(lambda: len(accepted) == 1)
        assert shut_down({1, 2, 3}) == 0
        assert shut_down({os.fstat(accepted[0].fileno()).st_ino}) == 1
