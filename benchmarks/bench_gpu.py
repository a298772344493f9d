"""Measures what a GPU does: right, forward and back beside cuDNN, and through a server of its own.

    python -m benchmarks.bench_gpu [--device cuda|cpu] [--quick] [--only forward realtime]

It prints a table and keeps it, with every round, in benchmarks/results/. It is meant to take 8 minutes on a large GPU.
On the CPU, with --quick, sizes are tiny: that the program itself works is all that is to be learned there.
"""

import argparse
import re
import sys

import torch
from seqloom_server.nn.spec import ModelSpec

from benchmarks.harness.child_process import run
from benchmarks.harness.table_rows import Part, measured
from benchmarks.loads.training_workload import NARROW, TRAINED
from benchmarks.loads.workload import SERVED
from benchmarks.parts import costs, gpu_kernels, gpu_serving, mixed_traffic, sequence_sweeps, stream_sweeps, training
from benchmarks.setup.gpu_bench import GpuBench
from benchmarks.setup.server_bench import CHUNK, measure, parser

_ON_DEVICE: dict[str, Part] = {
    "correctness": gpu_kernels.correctness,
    "ceiling": gpu_kernels.ceiling,
    "forward": gpu_kernels.forwards,
    "precisions": gpu_kernels.precisions,
    "backward": gpu_kernels.backwards,
}
_SERVED: dict[str, Part] = {
    "callers": sequence_sweeps.callers,
    "streams": stream_sweeps.streams,
    "realtime": gpu_serving.real_time,
    "gradients": training.gradients,
    "mixed": mixed_traffic.mixed,
    "padding": costs.padding,
}
_STREAMS = [100, 1000, 3000, 6000, 10_000]
_MANY = ("--max-sessions", "20000", "--max-queue-items", "65536", "--max-batch-sequences", "1024")


def main() -> int:
    own = parser(__doc__, _ON_DEVICE | _SERVED)
    own.set_defaults(device="cuda")
    own.add_argument("--streams", nargs="+", type=int, metavar="N", help="streams in real time that are tried")
    options = own.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench_gpu: there is no CUDA device: --device cpu --quick tries the program", file=sys.stderr)
        return 1
    try:
        rows = measured(_ON_DEVICE, [name for name in options.only if name in _ON_DEVICE], _gpu_bench(options))
    except gpu_kernels.Wrong as error:
        print(f"bench_gpu: {error}", file=sys.stderr)
        return 1
    torch.cuda.empty_cache()
    many, trainers, spoken = (4, 2, [2, 4]) if options.quick else (256, 32, options.streams or _STREAMS)
    axes = {"callers": [1, many], "streams": [many], "chunks": [CHUNK], "realtime": spoken}
    measure(
        "gpu",
        options,
        _SERVED,
        SERVED | {NARROW: TRAINED[NARROW]},
        rounds=3,
        seconds=(3.0, 0.2),
        server_flags=() if options.quick else _MANY,
        device=_device_name(options.device),
        rows=rows,
        axes=axes,
        trainers=trainers,
    )
    return 0


def _gpu_bench(options: argparse.Namespace) -> GpuBench:
    sizes = (8, 16, 12) if options.quick else (160, 1000, 6000)
    specs = {f"{cell} H={sizes[1]} O={sizes[2]}": ModelSpec(cell, *sizes) for cell in ("elman", "gru", "lstm")}
    counts = [1, 4] if options.quick else [1, 4, 16, 64, 256, 1024]
    steps, size = (20, 64) if options.quick else (100, 8192)
    rounds = options.rounds or (1 if options.quick else 3)
    return GpuBench(torch.device(options.device), specs, counts, steps, size, rounds)


def _device_name(device: str) -> str:
    """A name as it may stand in that of a file."""
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    run(main)
