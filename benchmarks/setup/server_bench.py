"""What every benchmark of a server has: options, recordings, a server of its own with models, and a round of it."""

import argparse
import contextlib
import functools
import pathlib
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import seqloom
from own_server import OwnServer, own_server

from benchmarks.harness import results_file
from benchmarks.harness.child_process import Program, child_process, program
from benchmarks.harness.rounds import Loop, Result
from benchmarks.harness.table_rows import Part, measured
from benchmarks.loads import workload
from benchmarks.loads.training_workload import TRAINED, Labelled, labelled

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results"
CHUNK = 10  # frames

AXES: dict[str, tuple[list[int], list[int], str]] = {
    "callers": ([1, 2, 4, 8, 16, 32, 64, 128, 256], [1, 16, 256], "callers of whole recordings"),
    "streams": ([1, 10, 100, 300, 1000], [1, 100], "live streams"),
    "chunks": ([1, 2, 5, 10, 20], [1, 10], "frames of a chunk"),
    "lengths": ([10, 100, 1000, 10_000], [10, 1000], "steps of a sequence"),
    "widths": ([64, 128, 256, 512, 1024, 2048], [64, 512], "hidden units"),
    "idle": ([2000], [400], "live streams with nothing to do"),
}
"""What is swept over: the values of each axis, those of a quick run, and what they are."""


@dataclass(eq=False)
class ServerBench:
    """What the parts measure with. models: the server's folder of them. conditions: see results_file. seconds: of one
    round. quick: whether little of everything is to be done. flags: options of servers and programs. data: of these.

    callers: of whole recordings. streams: of a closed loop. trainers: callers that train. axes: values to sweep over.
    """

    loop: Loop
    server: OwnServer
    client: seqloom.AsyncClient
    models: pathlib.Path
    conditions: dict[str, Any]
    stack: contextlib.ExitStack
    recordings: list[np.ndarray]
    rounds: int
    seconds: float
    quick: bool = False
    flags: tuple[str, ...] = ()
    threads: int = 0
    data: tuple[object, ...] = ()
    callers: int = 64
    streams: int = 64
    trainers: int = 32
    axes: dict[str, list[int]] = field(default_factory=dict)
    programs: dict[str, Program] = field(default_factory=dict)

    def watched(self, work: Coroutine[Any, Any, Result]) -> Result:
        """One round, with what the server says of it: batches, padding, and what a frame cost, on the clock, on the
        device (where a slice counts once, whatever kinds of work share it), and of the server's CPU time."""
        before, cpu, begun = self.server.metrics(), self.cpu_seconds(self.server.pid), time.perf_counter()
        result: Result = self.loop.run(work)
        cores = (self.cpu_seconds(self.server.pid) - cpu) / (time.perf_counter() - begun)
        grown = self.server.metrics()
        grown.subtract(before)
        steps, padded = grown["seqloom_steps_total"], grown["seqloom_padded_steps_total"]
        slices = max(grown["seqloom_batch_sequences_count"], 1)
        us_a_frame = 1e6 / result["frames_per_second"]
        device_us = 1e6 * grown["seqloom_device_busy_seconds_total"] / max(steps, 1)
        return result | {
            "batch_sequences": grown["seqloom_batch_sequences_sum"] / slices,
            "batch_steps": steps / slices,
            "padding_share": padded / max(steps + padded, 1),
            "device_busy_share": device_us / us_a_frame,
            "device_us_a_frame": device_us,
            "us_a_frame": us_a_frame,
            "server_us_a_frame": cores * us_a_frame,
        }

    def with_shares(self, work: Coroutine[Any, Any, Any]) -> tuple[Any, Result]:
        """Runs a round; returns its result and what each kind of work, "stream", "infer" and "train", had of the
        device: a slice that two kinds share counts for both."""

        def taken() -> Result:
            name = "seqloom_compute_duration_seconds_sum"
            return {op: self.server.metrics(op=op)[name] for op in ("stream", "infer", "train")}

        before, begun = taken(), time.perf_counter()
        result = self.loop.run(work)
        seconds = time.perf_counter() - begun
        return result, {op: (after - before[op]) / seconds for op, after in taken().items()}

    def ask(self, name: str, *question: object) -> Any:
        """Asks a program that takes the flags and chooses recordings by --data; it is started when it is first
        asked, and ends with the benchmark."""
        if name not in self.programs:
            self.programs[name] = self.stack.enter_context(program(name, *self.flags, *self.data))
        return self.programs[name].ask(question)

    @functools.cache  # noqa: B019  there is one, for as long as the program runs
    def chunks(self, size: int = CHUNK) -> list[np.ndarray]:
        """The recordings as chunks [size, 160] of a live stream."""
        return workload.chunks(self.recordings, size)

    @functools.cache  # noqa: B019
    def examples(self, model: str) -> list[Labelled]:
        return labelled(self.recordings, TRAINED[model])

    @staticmethod
    def cpu_seconds(pid: int) -> float:
        taken = psutil.Process(pid).cpu_times()
        return taken.user + taken.system


def parser(description: str | None, parts: Mapping[str, object]) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="one short round of each; kept only where --out is given")
    options.add_argument("--only", nargs="+", choices=parts, default=list(parts), help="these parts (all)")
    options.add_argument(
        "--data", type=pathlib.Path, metavar="DIR", help="a folder of WAV files (synthetic recordings)"
    )
    options.add_argument("--out", type=pathlib.Path, metavar="DIR", help="where the results go (benchmarks/results)")
    options.add_argument("--device", choices=("cuda", "cpu", "auto"), default="auto", help="what runs the networks")
    options.add_argument("--threads", type=int, default=0, metavar="N", help="torch's, here and there (its own choice)")
    options.add_argument("--rounds", type=int, metavar="N", help="rounds of each measuring")
    options.add_argument("--seconds", type=float, metavar="X", help="length of a round")
    return options


def measure(
    name: str,
    options: argparse.Namespace,
    parts: Mapping[str, Part],
    models: Mapping[str, seqloom.ModelSpec],
    *,
    rounds: int,
    seconds: tuple[float, float],
    server_flags: Sequence[str] = (),
    device: str = "",
    **sizes: Any,
) -> pathlib.Path | None:
    """Runs the parts that were asked for, prints their table, and keeps it, with every round, unless it was made in
    haste; returns the path of the JSON that it is kept in. Ends the program where the recordings cannot be had.

    seconds: of a round, and of a quick one's. device: its name, where the server's word for it is too short. sizes:
    fields of the bench.
    """
    begun = time.perf_counter()
    try:
        recordings = workload.from_folder(options.data) if options.data else workload.synthetic()
    except ValueError as error:
        raise SystemExit(f"{pathlib.Path(sys.argv[0]).stem}: {error}") from None
    taken = (options.rounds or (1 if options.quick else rounds), options.seconds or seconds[options.quick])
    with _opened(options, models, server_flags, (recordings, *taken), sizes) as bench:
        rows = measured(parts, options.only, bench)
    bench.conditions["device"] = device or bench.conditions["device"]
    text = results_file.table(rows)
    print(f"\n{text}")
    folder = options.out or (None if options.quick else RESULTS)
    kept = folder and results_file.save(folder, f"{name}-{bench.conditions['device']}", bench.conditions, text, rows)
    print(f"\n{time.perf_counter() - begun:.0f} s in all")
    return kept


@contextlib.contextmanager
def _opened(
    options: argparse.Namespace,
    models: Mapping[str, seqloom.ModelSpec],
    server_flags: Sequence[str],
    measuring: tuple[list[np.ndarray], int, float],
    sizes: dict[str, Any],
) -> Iterator[ServerBench]:
    """Runs a server with these models until the block ends."""
    sizes = {"axes": {name: quick if options.quick else all_of for name, (all_of, quick, _) in AXES.items()}} | sizes
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        loop = stack.enter_context(Loop())
        flags = ("--device", options.device, *(("--threads", str(options.threads)) if options.threads else ()))
        server = stack.enter_context(own_server(folder, *flags, *server_flags, launch=child_process))
        client = loop.run(_client_with_models(server.address, models))
        stack.callback(lambda: loop.run(client.close()))
        settings = {
            "recordings": "a folder of WAV files" if options.data else "synthetic, lengths as of spoken digits",
            "rounds": measuring[1],
            "seconds a round": measuring[2],
        }
        conditions = results_file.conditions(loop.run(client.server_info()).device, settings)
        data = ("--data", options.data) if options.data else ()
        own = {"quick": options.quick, "flags": flags, "threads": options.threads, "data": data}
        yield ServerBench(loop, server, client, folder, conditions, stack, *measuring, **own, **sizes)


async def _client_with_models(address: str, models: Mapping[str, seqloom.ModelSpec]) -> seqloom.AsyncClient:
    client = seqloom.AsyncClient(address)
    for name, spec in models.items():
        await client.create_model(name, spec)
    return client
