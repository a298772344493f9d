"""Whether a unix socket is free to listen on: gRPC would take it, silently, from the server that listens there."""

import contextlib
import errno
import os
import socket
import stat


def claim(name: str) -> None:
    """Removes a socket that nobody listens on any more. name: a path, or a name in the abstract namespace after a NUL.

    Raises OSError that says why one cannot listen there: someone does, or it is no socket, or as bind() does.
    """
    if not name.startswith("\0"):
        _remove_stale(name)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.bind(name)  # since gRPC does not say why it cannot
    release(name)


def release(name: str) -> None:
    """Removes a socket of one's own."""
    if not name.startswith("\0"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.ENOTSOCK, "there is something else than a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:  # who listened there has ended without removing it
            release(path)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:  # it has more callers than it takes at once
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
