"""What each kind of message costs the process that serves it, beside an echo of the same bytes."""

import asyncio
from collections.abc import Iterator

import seqloom

from benchmarks.harness.child_process import program
from benchmarks.harness.rounds import Result, interleaved
from benchmarks.harness.table_rows import Row
from benchmarks.loads.workload import FRAME
from benchmarks.setup.server_bench import ServerBench

TINY = "tiny"
MODELS = {TINY: seqloom.ModelSpec(cell="elman", input_size=FRAME, hidden_size=8, output_size=8)}
TITLE = "H=8 O=8"

ENTRIES = (1, 4, 16, 64, 128, 256)
FRAMES = (1, 2, 5, 10, 20)
CALLS = ((1, 40), (16, 40))  # sequences, frames of each
_MESSAGE_BYTES = 1 << 20  # the most that the SDK puts into a message
_TICK = 0.01  # seconds in which the kernel counts CPU time


def streams(bench: ServerBench) -> Iterator[Row]:
    """Messages of StreamInfer, from one session's to many."""
    sizes = [(entries, frames) for entries in ENTRIES for frames in FRAMES]
    fitting = [(entries, frames) for entries, frames in sizes if entries * frames * FRAME * 4 <= _MESSAGE_BYTES]
    yield from _rows(bench, "StreamInfer", ("entry", "entries"), fitting)


def calls(bench: ServerBench) -> Iterator[Row]:
    """Calls of Infer."""
    yield from _rows(bench, "Infer", ("sequence", "sequences"), CALLS)


def _rows(bench: ServerBench, kind: str, what: tuple[str, str], sizes) -> Iterator[Row]:
    with program("loads.front_end_load") as load, program("baselines.grpc_echo") as echo:
        echo_address, echo_process = echo.greeting
        for entries, frames in sizes:
            work, replies = (kind, TINY, entries, frames), []

            def asked(pid: int, *question: object) -> Result:
                """A round, with the CPU time that the server's process took for each message of it."""
                before = bench.cpu_seconds(pid)
                result: Result = load.ask(question)
                seconds = max(bench.cpu_seconds(pid) - before, _TICK)
                return result | {"cpu_us_a_message": 1e6 * seconds / result["messages"]}

            def served(work: tuple = work, replies: list[float] = replies) -> Result:
                question = bench.server.pid, bench.server.address, *work, None, bench.seconds
                result = bench.watched(asyncio.to_thread(asked, *question))
                replies.append(result["reply_bytes"])
                return result | {"cpu_us_an_entry": result["cpu_us_a_message"] / work[2]}

            def echoed(work: tuple = work, replies: list[float] = replies) -> Result:
                return asked(echo_process, echo_address, *work, round(replies[-1]), bench.seconds)

            rounds = interleaved({"served": served, "echo": echoed}, bench.rounds)
            for one, other in zip(rounds["served"], rounds["echo"], strict=True):
                one["echo_cpu_us_a_message"] = other["cpu_us_a_message"]
            title = f"{kind}, {entries} {what[entries > 1]} of {frames}"
            row = Row.of(title, TITLE, rounds["served"])
            yield row.against(rounds["echo"], "cpu_us_a_message", "the echo's CPU time")
