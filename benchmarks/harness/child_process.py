"""Starts every process that a benchmark needs beside its own, and ends it with all that it has started.

Servers, loads, baselines and Triton are process groups of their own, which no Ctrl-C of a terminal reaches. Each ends
with its `with` block: at the end, at an error, by SIGINT and by SIGTERM. Should this process be killed, guard.py ends
them.
"""

import atexit
import contextlib
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, NoReturn

ROOT = pathlib.Path(__file__).resolve().parents[2]
_GRACE = 10.0  # seconds that a process has to end by itself


@contextlib.contextmanager
def child_process(
    command: Sequence[object], *, grace: float = _GRACE, **options: Any
) -> Iterator["subprocess.Popen[str]"]:
    """Runs a command until the block ends; options: of subprocess.Popen.

    grace: seconds from SIGTERM to the SIGKILL that whatever is left of its group gets in any case; 0: no SIGTERM.
    """
    with contextlib.ExitStack() as stack:
        with _signals_held():  # or one that comes here would leave a process that nobody knows
            process = subprocess.Popen([str(each) for each in command], start_new_session=True, **options)
            stack.callback(_end, process, grace)
            _tell_guard("+", process.pid)
        yield process


def _end(process: "subprocess.Popen[str]", grace: float) -> None:
    try:
        if grace and process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _tell_guard("-", process.pid)
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):  # a question that the program did not live to read
                if pipe is not None:
                    pipe.close()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """SIGINT and SIGTERM that come within the block, in the main thread, count at its end."""
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: held.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


class Program:
    """A running program that answers each line, JSON, with one line, JSON. greeting: what it said first."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.greeting = self._answer()

    def ask(self, question: Any) -> Any:
        """Raises RuntimeError where it has ended, ValueError for half an answer, OSError where it reads no more."""
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
    """Runs the module benchmarks.NAME until the block ends; it may end by itself when its input does.

    python, variables, stderr: another interpreter, environment and place for its log than this process has.
    """
    command = [python, "-m", f"benchmarks.{name}", *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stderr, "text": True}
    with child_process(command, env=environment(variables), **pipes) as process:
        yield Program(process)
        assert process.stdin is not None
        with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
            process.stdin.close()
            process.wait(_GRACE)


def environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment variables in which a Python finds this package; variables: other ones than this process has."""
    found = dict(os.environ if variables is None else variables)
    found["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), found.get("PYTHONPATH"))))
    return found


def say(message: Any) -> None:
    """What a program answers with."""
    print(json.dumps(message), flush=True)


def questions() -> Iterator[Any]:
    """What a program is asked, until its input ends."""
    for line in sys.stdin:
        yield json.loads(line)


def run(main: Callable[[], int]) -> NoReturn:
    """Runs a benchmark to the end of this process. SIGTERM leaves all blocks on the way that Ctrl-C does."""
    ended_by = signal.SIGINT

    def end(*_: object) -> None:
        nonlocal ended_by
        ended_by = signal.SIGTERM
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells let programs in the background ignore
    signal.signal(signal.SIGTERM, end)
    try:
        status = main()
    except KeyboardInterrupt:
        print(f"ended by {ended_by.name}", file=sys.stderr)
        status = 128 + ended_by
    sys.exit(status)


def _tell_guard(sign: str, group: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(f"{sign}{group}", file=_guard(), flush=True)


@functools.cache
def _guard() -> IO[str]:
    """The input of the one guard of this process."""
    command = [sys.executable, "-m", "benchmarks.harness.guard"]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment(), text=True, start_new_session=True)
    assert guard.stdin is not None
    atexit.register(guard.wait)
    atexit.register(guard.stdin.close)  # first: the last that is registered
    return guard.stdin
