"""A server in a process that is forked off one which has imported everything: it starts in a tenth of the time.

What such a process runs is the command itself, with its own arguments, environment, streams and signals. It lacks only
what an interpreter does before and after: tests of a command's very start and end take a fresh one.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import TextIO

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["seqloom_server.__main__", "seqloom_server.rpc.server"])


class ForkedProcess:
    """`seqloom-server ARGUMENTS`, as subprocess.Popen would have it. stdout, stderr: its streams, of text."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str]) -> None:
        out, its_out = _FORKS.Pipe(duplex=False)
        err, its_err = _FORKS.Pipe(duplex=False)
        self._process = _FORKS.Process(target=_serve, args=(arguments, dict(environment), its_out, its_err))
        self._process.start()
        self._ends = threading.Lock()  # of two threads that ask, one alone may read how it ended
        self.pid = self._process.pid
        self.stdout, self.stderr = _text(out), _text(err)
        for end in (its_out, its_err):
            end.close()

    def poll(self) -> int | None:
        with self._ends:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        connection.wait([self._process.sentinel], timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired("seqloom-server", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _text(end: Connection) -> TextIO:
    """The file that a connection is, of which the file takes a copy."""
    file = os.fdopen(os.dup(end.fileno()), encoding="utf-8")
    end.close()
    return file


def _serve(arguments: list[str], environment: dict[str, str], out: Connection, err: Connection) -> None:
    for end, number in ((out, 1), (err, 2)):
        os.dup2(end.fileno(), number)
        end.close()
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["seqloom-server", *arguments]
    from seqloom_server.__main__ import main

    sys.exit(main(arguments))
