"""A program in a process that is forked off one which has imported everything: it starts in a tenth of the time.

It has its own arguments, environment and streams, gets signals and is killed as any other. It lacks only what an
interpreter does before and after: what is tested of a program's very start or end takes a fresh one.
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
# torch.optim imports torch._dynamo as the first optimizer is made, which takes as long as all the rest.
_FORKS.set_forkserver_preload(["seqloom_server.__main__", "seqloom_server.rpc.server", "torch._dynamo"])


class ForkedProcess:
    """`python -c PROGRAM ARGUMENTS`, as subprocess.Popen would have it. stdout, stderr: its streams, of text."""

    def __init__(self, program: str, *arguments: object, environment: Mapping[str, str] = os.environ) -> None:
        out, its_out = _FORKS.Pipe(duplex=False)
        err, its_err = _FORKS.Pipe(duplex=False)
        words = ["-c", *map(str, arguments)]
        self._process = _FORKS.Process(target=_run, args=(program, words, dict(environment), its_out, its_err))
        self._process.start()
        self._ends = threading.Lock()  # of two threads that ask, one alone may read how it ended
        self.pid = self._process.pid
        self.stdout, self.stderr = _text(out), _text(err)
        for end in (its_out, its_err):
            end.close()

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        with self._ends:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        connection.wait([self._process.sentinel], timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it still prints, which must be little, and its complaints; returns when it has ended."""
        self.wait(timeout)
        return self.stdout.read(), self.stderr.read()

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


def _run(program: str, words: list[str], environment: dict[str, str], out: Connection, err: Connection) -> None:
    for end, number in ((out, 1), (err, 2)):
        os.dup2(end.fileno(), number)
        end.close()
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
