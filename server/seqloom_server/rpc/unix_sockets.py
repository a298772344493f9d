"""Checks that a unix socket is free to listen on: gRPC would silently replace another server's socket."""

import contextlib
import errno
import os
import socket
import stat


def claim(name: str) -> None:
    """Checks that `name` can be listened on; removes a socket that no process listens on any more.

    name: a path, or a NUL and a name in the abstract namespace. Raises OSError, as bind() does, or if another process
    listens there, or if the file is not a socket.
    """
    if not name.startswith("\0"):
        _remove_stale(name)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.bind(name)  # for the error's text, which gRPC does not give
    release(name)


def release(name: str) -> None:
    """Removes this process's socket."""
    if not name.startswith("\0"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.ENOTSOCK, "the file exists and is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:  # the process that listened there ended without removing it
            release(path)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:  # its backlog of connections is full
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
