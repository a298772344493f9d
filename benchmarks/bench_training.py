"""Measures how a server of its own trains: callers' gradients and runs, beside one autograd pass in one process.

    python -m benchmarks.bench_training [--quick] [--only gradients mixed] [--data FOLDER-OF-WAV-FILES]

It prints a table and keeps it, with every round, in benchmarks/results/. Only ratios of one run can be compared.
"""

import functools

from benchmarks.harness.child_process import run
from benchmarks.harness.table_rows import Part
from benchmarks.loads.training_workload import TRAINED
from benchmarks.parts import mixed_traffic, training
from benchmarks.setup.server_bench import measure, parser

PARTS: dict[str, Part] = {
    "forward_backward": functools.partial(training.forward_backward, ahead=True),
    "gradients": training.gradients,
    "mixed": mixed_traffic.mixed,
    "cells": training.cells,
}


def main() -> int:
    own = parser(__doc__, PARTS)
    own.add_argument("--callers", type=int, default=32, metavar="N", help="callers of a recording each (32)")
    own.add_argument("--streams", type=int, default=20, metavar="N", help="streams in real time (20)")
    options = own.parse_args()
    mixed = functools.partial(mixed_traffic.mixed, speaking=options.streams, calling=0)
    parts = PARTS | {"mixed": mixed}
    measure("training", options, parts, TRAINED, rounds=5, seconds=(3.0, 0.5), trainers=options.callers)
    return 0


if __name__ == "__main__":
    run(main)
