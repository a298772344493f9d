"""What each kind of message costs the process that serves it, beside an echo of the same bytes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil
import seqloom
from own_server import OwnServer

from benchmarks.harness import results_file as report
from benchmarks.harness.child_process import Program
from benchmarks.harness.rounds import Result, interleaved, observed, ratio
from benchmarks.harness.table_rows import Row
from benchmarks.loads.workload import FRAME

TINY = "tiny"
MODELS = {TINY: seqloom.ModelSpec(cell="elman", input_size=FRAME, hidden_size=8, output_size=8)}
TITLE = "H=8 O=8"

ENTRIES = (1, 4, 16, 64, 128, 256)
FRAMES = (1, 2, 5, 10, 20)
CALLS = ((1, 40), (16, 40))  # sequences, frames of each
_MESSAGE_BYTES = 1 << 20  # the most that the SDK puts into a message
_TICK = 0.01  # seconds in which the kernel counts CPU time


@dataclass
class FrontEndBench:
    """What the parts need. load, echo: the programs front_end_load.py and front_end_echo.py. seconds: of a round."""

    server: OwnServer
    load: Program
    echo: Program
    rounds: int
    seconds: float


def streams(bench: FrontEndBench) -> Iterator[Row]:
    """Messages of StreamInfer, from one session's to many."""
    for entries in ENTRIES:
        for frames in FRAMES:
            if entries * frames * FRAME * 4 <= _MESSAGE_BYTES:
                yield _row(bench, "StreamInfer", entries, frames)


def calls(bench: FrontEndBench) -> Iterator[Row]:
    """Calls of Infer."""
    for sequences, frames in CALLS:
        yield _row(bench, "Infer", sequences, frames)


PARTS: dict[str, Callable[[FrontEndBench], Iterator[Row]]] = {"streams": streams, "calls": calls}


def table(rows: list[Row]) -> str:
    """A Markdown table of all kinds; the ratio is of CPU time, so more than 1."""
    lines = [
        ["message", "messages/s", "entries/s", "frames/s", "server's CPU, µs a message", "µs an entry", "device busy"]
    ]
    lines[0] += ["the echo's CPU, µs a message", "of the echo's"]
    for row in rows:
        values = row.values
        lines.append(
            [
                row.work,
                *(f"{values[f'{name}_per_second']:,.0f}" for name in ("messages", "entries", "frames")),
                f"{values['cpu_us_a_message']:,.0f}",
                f"{values['cpu_us_an_entry']:,.1f}",
                f"{values['device_busy_share']:.0%}",
                f"{values['echo_cpu_us_a_message']:,.0f}",
                f"{row.ratio:.2f}",
            ]
        )
    return report.markdown(lines)


def _row(bench: FrontEndBench, kind: str, entries: int, frames: int) -> Row:
    address, process = bench.echo.greeting
    work = [kind, TINY, entries, frames]
    sizes: list[float] = []

    def served() -> Result:
        with observed(bench.server, extra := {}):
            result = _measured(bench, bench.server.pid, [bench.server.address, *work, None, bench.seconds])
        sizes.append(result["reply_bytes"])
        return result | {"device_busy_share": extra["device_busy_share"]}

    def echoed() -> Result:
        return _measured(bench, process, [address, *work, round(sizes[-1]), bench.seconds])

    rounds = interleaved({"served": served, "echo": echoed}, bench.rounds)
    for one, other in zip(rounds["served"], rounds["echo"], strict=True):
        one["cpu_us_an_entry"] = one["cpu_us_a_message"] / entries
        one["echo_cpu_us_a_message"] = other["cpu_us_a_message"]
        one["echo_messages_per_second"] = other["messages_per_second"]
    share = ratio(rounds["served"], rounds["echo"], "cpu_us_a_message")
    what = ("entry", "entries") if kind == "StreamInfer" else ("sequence", "sequences")
    title = f"{kind}, {entries} {what[entries > 1]} of {frames}"
    return Row.of(title, TITLE, rounds["served"], share, "the echo's CPU time", lower_is_better=True)


def _measured(bench: FrontEndBench, pid: int, question: list[object]) -> Result:
    """A round, with the CPU time that the server's process took for each message of it."""
    process = psutil.Process(pid)
    before = sum(process.cpu_times()[:2])
    result: Result = bench.load.ask(question)
    seconds = sum(process.cpu_times()[:2]) - before
    return result | {"cpu_us_a_message": 1e6 * max(seconds, _TICK) / result["messages"]}
