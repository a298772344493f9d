"""What a benchmark has started ends with it, however it ends: real benchmarks, stopped in the middle."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from benchmarks.harness.child_process import child_process, program

_ROOT = pathlib.Path(__file__).resolve().parents[3]
_PATIENCE = 60  # seconds


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # by now it has ended
        return ""


@contextlib.contextmanager
def running(
    name: str, part: str, child: str, *, background: bool
) -> Iterator[tuple["subprocess.Popen[str]", list[psutil.Process]]]:
    """Yields a benchmark in the middle of a part, and all that it has started: a server, its guard, `child`."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--seconds", "30", "--only", part]
    environment = os.environ | {"PEERS_HOME": str(_ROOT / "nowhere")}
    started: list[psutil.Process] = []
    if background:  # as a shell does, which has such programs ignore SIGINT
        command = ["bash", "-c", "trap '' INT; exec \"$@\"", "bash", *command]
    benchmark = subprocess.Popen(
        command, cwd=_ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        end = time.monotonic() + _PATIENCE
        wanted = ["seqloom_server", "harness.guard", child]
        while wanted:
            assert benchmark.poll() is None, benchmark.stderr.read()
            assert time.monotonic() < end, f"no {wanted} among {started}"
            started = psutil.Process(benchmark.pid).children(recursive=True)
            told = " ".join(map(command_of, started))
            wanted = [name for name in wanted if name not in told]
        yield benchmark, started
    finally:
        for each in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        benchmark.kill()
        benchmark.communicate()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "part", "child"),
    [
        ("bench_server", "callers", "network_alone"),
        pytest.param("bench_server", "connections", "grpc_echo", marks=SLOW),
        pytest.param("bench_server", "streams", "seqloom_server", marks=SLOW),
        pytest.param("bench_training", "mixed", "trainers", marks=SLOW),
        pytest.param("bench_front_end", "calls", "front_end_load", marks=SLOW),
    ],
)
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT, pytest.param(signal.SIGKILL, marks=SLOW)])
def test_a_benchmark_that_is_stopped_leaves_no_process(name: str, part: str, child: str, by: signal.Signals):
    with running(name, part, child, background=by == signal.SIGTERM) as (benchmark, started):
        if by == signal.SIGINT:  # as a terminal sends it
            os.killpg(benchmark.pid, by)
        else:
            benchmark.send_signal(by)
        _, told = benchmark.communicate(timeout=_PATIENCE)
        _, left = psutil.wait_procs(started, timeout=_PATIENCE)
        assert left == []
    if by == signal.SIGKILL:
        assert benchmark.returncode == -by
    else:
        assert benchmark.returncode == 128 + by, told
        assert told.endswith(f"ended by {by.name}\n")


STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.parametrize("grace", [0, 0.5])
@pytest.mark.parametrize("raised", [None, ZeroDivisionError, KeyboardInterrupt])
def test_a_child_ends_with_what_it_has_started_though_that_ignores_sigterm(grace: float, raised: type | None):
    with (
        pytest.raises(raised) if raised else contextlib.nullcontext(),
        child_process([sys.executable, "-c", PARENT], grace=grace, stdout=subprocess.PIPE, text=True) as child,
    ):
        grandchild = psutil.Process(int(child.stdout.readline()))
        if raised:
            raise raised
    assert child.poll() is not None
    _, left = psutil.wait_procs([grandchild], timeout=_PATIENCE)
    assert left == []


def test_a_child_that_has_died_does_not_keep_what_it_had_started():
    with child_process([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as child:
        grandchild = psutil.Process(int(child.stdout.readline()))
        child.kill()
        child.wait()
        assert grandchild.is_running()
    _, left = psutil.wait_procs([grandchild], timeout=_PATIENCE)
    assert left == []


def test_a_program_answers_and_one_that_does_not_start_says_so():
    with program("loads.streamers", "127.0.0.1:1", "large") as speaker:
        assert speaker.greeting == "ready"
    with pytest.raises(RuntimeError, match="ended with status"), program("loads.no_such_load"):
        pass
