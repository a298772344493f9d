"""Programs of the benchmark that run in processes of their own, as whoever they stand for would."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import IO, Any

_ROOT = pathlib.Path(__file__).resolve().parents[2]


class Program:
    """A running program that answers each line, JSON, with one line, JSON. greeting: what it said first."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.greeting = self._answer()

    def ask(self, question: Any) -> Any:
        assert self._process.stdin is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with status {self._process.wait()}")
        return json.loads(line)


@contextlib.contextmanager
def program(
    name: str,
    *arguments: object,
    python: str | pathlib.Path = sys.executable,
    variables: Mapping[str, str] | None = None,
    stderr: IO[str] | None = None,
) -> Iterator[Program]:
    """Runs the module benchmarks.NAME until the block ends; it ends by itself when its input does.

    python, variables, stderr: another interpreter, environment and place for its log than this process has.
    """
    command = [str(python), "-m", f"benchmarks.{name}", *map(str, arguments)]
    variables = dict(os.environ if variables is None else variables)
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), variables.get("PYTHONPATH"))))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=variables
    ) as process:
        try:
            yield Program(process)
        except BaseException:
            process.kill()
            raise


def say(message: Any) -> None:
    """What a program answers with."""
    print(json.dumps(message), flush=True)


def questions() -> Iterator[Any]:
    """What a program is asked, until its input ends."""
    for line in sys.stdin:
        yield json.loads(line)
