"""Kills the process groups that a benchmark has left, once the benchmark itself is gone, however it went.

A program of child_process.py: it reads lines, "+" or "-" and the number of a group, until the benchmark closes its end
of the pipe, or the kernel does so for a benchmark that was killed.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
