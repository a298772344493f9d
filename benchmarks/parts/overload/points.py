"""What all parts of overload need: the callers' processes, the server's counts, a pause until it is quiet, a row."""

import concurrent.futures
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.harness.child_process import Program, program
from benchmarks.harness.rounds import Result
from benchmarks.harness.table_rows import Row
from benchmarks.loads import open_loop
from benchmarks.loads.overload_workload import FACTORS
from benchmarks.setup.server_bench import ServerBench

LATE_SENDER = 20.0  # milliseconds, from which on a sender's lateness is told
PEAK_SECONDS = 2.0  # that the peak is measured for at least, since all else is a multiple of it
_QUICK_FACTORS = (0.8, 2.0)
_LONGEST_PAUSE = 20.0  # seconds


def factors(bench: ServerBench) -> tuple[float, ...]:
    return _QUICK_FACTORS if bench.quick else FACTORS


@contextlib.contextmanager
def callers(bench: ServerBench, model: str, processes: int = 1) -> Iterator[list[Program]]:
    """Yields so many processes of callers for a network."""
    with contextlib.ExitStack() as stack:
        name = "loads.overload_callers"
        yield [stack.enter_context(program(name, bench.server.address, model)) for _ in range(processes)]


def together(*asked: tuple[Program, Sequence[Any]]) -> list[Any]:
    """Asks programs at the same time."""
    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(lambda each: each[0].ask(each[1]), asked))


def counted(bench: ServerBench, model: str) -> Result:
    """The server's counts of whole sequences so far: steps computed, slices, and the seconds that these took."""
    found = bench.server.metrics(op="infer", model=model)
    slices = "seqloom_compute_duration_seconds"
    return {
        "steps": found["seqloom_steps_total"],
        "slices": found[f"{slices}_count"],
        "seconds": found[f"{slices}_sum"],
    }


def quiet(bench: ServerBench) -> None:
    """Waits until nothing waits in the server and nothing is computed any more."""
    end, before = time.perf_counter() + _LONGEST_PAUSE, -1.0
    while time.perf_counter() < end:
        found = bench.server.metrics()
        if not found["seqloom_queue_items"] and found["seqloom_steps_total"] == before:
            return
        before = found["seqloom_steps_total"]
        time.sleep(0.1)


def summary(gone: open_loop.Calls, seconds: float, peak: float, due: float) -> Result:
    """The numbers of one round of calls. peak, due: calls a second that can be answered, and that were to be sent."""
    result = open_loop.summary(gone, seconds)
    return result | {"good_share": result["good_per_second"] / peak, "due_per_second": due}


def point(work: str, network: str, rounds: list[Result], **more: Any) -> Row:
    """A row of the numbers that all of its rounds have, such as the delay of refusals, and a note on a late sender."""
    names = [name for name in rounds[0] if all(name in each for each in rounds)]
    row = Row.of(work, network, [{name: each[name] for name in names} for each in rounds], **more)
    if (late := row.values.get("sent_late_p99_ms", 0.0)) > LATE_SENDER:
        told = f"the sender was late: p99 {late:,.0f} ms"
        if due := row.values.get("due_per_second"):
            told += f", {row.values['offered_per_second']:,.0f}/s of {due:,.0f} sent"
        add_note(row, told)
    return row


def add_note(row: Row, told: str) -> None:
    """Tells one thing more of a row, unless it is nothing."""
    row.note = "; ".join(filter(None, [row.note, told]))
