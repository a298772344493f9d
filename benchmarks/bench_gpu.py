"""Measures what a GPU does: right, forward and back beside cuDNN, and through a server of its own.

    python -m benchmarks.bench_gpu [--device cuda|cpu] [--quick] [--only forward realtime]

It prints a table and keeps it, with every round, in benchmarks/results/. It is meant to take 8 minutes on a large GPU.
On the CPU, with --quick, sizes are tiny: that the program itself works is all that is to be learned there.
"""

import argparse
import os
import re
import sys
import time

import torch
from seqloom_server.nn.spec import ModelSpec

from benchmarks.harness import results_file as report
from benchmarks.harness.table_rows import Row, measured
from benchmarks.loads.workload import MODELS
from benchmarks.parts import gpu_kernels as gpu_parts
from benchmarks.parts import gpu_serving as gpu_served
from benchmarks.setup.gpu_bench import GpuBench
from benchmarks.setup.server_setup import leave, parser, recordings, sitting

_ON_DEVICE = {
    "correctness": gpu_parts.correctness,
    "ceiling": gpu_parts.ceiling,
    "forward": gpu_parts.forwards,
    "precisions": gpu_parts.precisions,
    "backward": gpu_parts.backwards,
}
_SERVED = {
    "callers": gpu_served.callers,
    "streams": gpu_served.streams,
    "realtime": gpu_served.real_time,
    "training": gpu_served.training,
    "mixed": gpu_served.mixed,
}


def main() -> int:
    options = _parser().parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench_gpu: there is no CUDA device: --device cpu --quick tries the program", file=sys.stderr)
        return 1
    begun = time.perf_counter()
    rounds = options.rounds or (1 if options.quick else 3)
    seconds = options.seconds or (0.2 if options.quick else 3.0)
    on_device = [name for name in _ON_DEVICE if name in options.only]
    served = [name for name in _SERVED if name in options.only]
    rows: list[Row] = []
    try:
        heard = recordings(options) if served else []
    except ValueError as error:
        print(f"bench_gpu: {error}", file=sys.stderr)
        return 1
    try:
        rows += measured(_ON_DEVICE, on_device, _gpu_bench(options, rounds))
    except gpu_parts.Wrong as error:
        print(f"bench_gpu: {error}", file=sys.stderr)
        return 1
    torch.cuda.empty_cache()
    settings = {"rounds": rounds, "seconds a round": seconds}
    with sitting(options, MODELS, settings, _server_options(options)) as held:
        taken = held.conditions | {"device": _device_name(options.device)}
        bench = gpu_served.ServedBench(
            held,
            heard,
            callers=4 if options.quick else 256,
            trainers=2 if options.quick else 32,
            streams=[2, 4] if options.quick else options.streams,
            programs=2 if options.quick else max(1, min(8, (os.cpu_count() or 2) // 2)),
            rounds=rounds,
            seconds=seconds,
        )
        rows += measured(_SERVED, served, bench)
    leave(options, "gpu", taken, report.table(rows), rows)
    print(f"\n{time.perf_counter() - begun:.0f} s in all")
    return 0


def _parser() -> argparse.ArgumentParser:
    options = parser(__doc__, {**_ON_DEVICE, **_SERVED})
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="what is measured (cuda)")
    counts = [100, 1000, 3000, 6000, 10_000]
    options.add_argument(
        "--streams", nargs="+", type=int, default=counts, metavar="N", help="streams in real time that are tried"
    )
    return options


def _gpu_bench(options: argparse.Namespace, rounds: int) -> GpuBench:
    cells = [("elman", "elman"), ("gru", "gru"), ("lstm", "lstm")]
    sizes = (8, 16, 12) if options.quick else (160, 1000, 6000)
    specs = {f"{cell} H={sizes[1]} O={sizes[2]}": ModelSpec(name, *sizes) for cell, name in cells}
    counts = [1, 4] if options.quick else [1, 4, 16, 64, 256, 1024]
    steps, size = (20, 64) if options.quick else (100, 8192)
    return GpuBench(torch.device(options.device), specs, counts, steps, size, rounds)


def _server_options(options: argparse.Namespace) -> tuple[str, ...]:
    more = ("--max-sessions", "20000", "--max-queue-items", "65536", "--max-batch-sequences", "1024")
    return ("--device", options.device, *(() if options.quick else more))


def _device_name(device: str) -> str:
    """A name as it may stand in that of a file."""
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
