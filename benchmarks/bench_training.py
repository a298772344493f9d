"""Measures how a server of its own trains: callers' gradients and runs, beside one autograd pass in one process.

    python -m benchmarks.bench_training [--quick] [--only gradients mixed] [--data FOLDER-OF-WAV-FILES]

It prints a table and keeps it, with every round, in benchmarks/results/. Only ratios of one run can be compared.
"""

import argparse
import sys
import time

from benchmarks.harness import results_file as report
from benchmarks.harness.child_process import program
from benchmarks.harness.table_rows import measured
from benchmarks.loads.training_workload import TRAINED
from benchmarks.parts.training import PARTS, TrainingBench
from benchmarks.setup.server_setup import flags, leave, parser, recordings, sitting


def main() -> int:
    options = _parser().parse_args()
    try:
        spoken = recordings(options)
    except ValueError as error:
        print(f"bench_training: {error}", file=sys.stderr)
        return 1
    rounds = options.rounds or (1 if options.quick else 5)
    seconds = options.seconds or (0.5 if options.quick else 3.0)
    steps, samples = options.steps or (1000 if options.quick else 10_000), 8 if options.quick else 64
    data = ("--data", options.data) if options.data else ()
    begun = time.perf_counter()
    with (
        sitting(options, TRAINED, {"rounds": rounds, "seconds a round": seconds}) as held,
        program("baselines.autograd_pass", *flags(options), *data) as autograd,
    ):
        bench = TrainingBench(
            held,
            autograd,
            spoken,
            data,
            rounds,
            seconds,
            options.callers,
            options.streams,
            steps,
            samples,
            ahead=True,
        )
        rows = measured(PARTS, options.only, bench)
    leave(options, "training", held.conditions, report.table(rows), rows)
    print(f"\n{time.perf_counter() - begun:.0f} s in all")
    return 0


def _parser() -> argparse.ArgumentParser:
    options = parser(__doc__, PARTS)
    options.add_argument("--callers", type=int, default=32, metavar="N", help="callers of a recording each (32)")
    options.add_argument("--streams", type=int, default=20, metavar="N", help="streams in real time (20)")
    options.add_argument("--steps", type=int, metavar="N", help="steps of the long call (10000)")
    return options


if __name__ == "__main__":
    sys.exit(main())
