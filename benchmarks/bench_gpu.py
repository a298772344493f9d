"""Measures what a GPU does through a server of its own, beside torch's own modules, cuDNN, alone on the same GPU.

    python -m benchmarks.bench_gpu [--device cuda|cpu] [--quick] [--only callers realtime] [--streams 1000 6000]

It prints a table and keeps it, with every round, in benchmarks/results/. It is meant to take 8 minutes on a large GPU.
On the CPU, with --quick, there is little of everything: all that is to be learned there is that the program works.
"""

import re
import sys

import torch

from benchmarks.harness.child_process import run
from benchmarks.harness.table_rows import Part
from benchmarks.loads.training_workload import NARROW, TRAINED
from benchmarks.loads.workload import SERVED
from benchmarks.parts import costs, gpu_serving, mixed_traffic, sequence_sweeps, stream_sweeps, training
from benchmarks.setup.server_bench import CHUNK, measure, parser

PARTS: dict[str, Part] = {
    "callers": sequence_sweeps.callers,
    "streams": stream_sweeps.streams,
    "realtime": gpu_serving.real_time,
    "forward_backward": training.forward_backward,
    "gradients": training.gradients,
    "mixed": mixed_traffic.mixed,
    "padding": costs.padding,
}
_STREAMS = [100, 1000, 3000, 6000, 10_000]
_MANY = ("--max-sessions", "20000", "--max-queue-items", "65536", "--max-batch-sequences", "1024")


def main() -> int:
    own = parser(__doc__, PARTS)
    own.set_defaults(device="cuda")
    own.add_argument("--streams", nargs="+", type=int, metavar="N", help="streams in real time that are tried")
    options = own.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench_gpu: there is no CUDA device: --device cpu --quick tries the program", file=sys.stderr)
        return 1
    many, trainers, spoken = (4, 2, [2, 4]) if options.quick else (256, 32, options.streams or _STREAMS)
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    measure(
        "gpu",
        options,
        PARTS,
        SERVED | {NARROW: TRAINED[NARROW]},
        rounds=3,
        seconds=(3.0, 0.2),
        server_flags=() if options.quick else _MANY,
        device=re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-"),
        axes={"callers": [1, many], "streams": [many], "chunks": [CHUNK], "realtime": spoken},
        trainers=trainers,
    )
    return 0


if __name__ == "__main__":
    run(main)
