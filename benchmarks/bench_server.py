"""Measures a server of its own beside what stands for the best there is, and holds each number against its goal.

Whole recordings, live and real-time streams beside Triton and the network alone; training beside autograd; what a frame
costs as streams come, an idle stream's memory, and padding.

    python -m benchmarks.bench_server [--quick] [--only callers streams] [--data FOLDER-OF-WAV-FILES]

It prints a table and keeps it, with every round, in benchmarks/results/. Only ratios of one run can be compared.
Where Triton is not there (benchmarks/peers/README.md), it says so and measures the rest.
"""

import argparse
import sys
import time
from typing import Any

from benchmarks.harness import results_file as report
from benchmarks.harness.child_process import program
from benchmarks.harness.table_rows import measured
from benchmarks.loads.training_workload import NARROW, TRAINED
from benchmarks.loads.workload import SERVED
from benchmarks.parts.peer_agreement import started
from benchmarks.parts.serving import PARTS, Bench
from benchmarks.setup.server_setup import flags, leave, parser, recordings, sitting


def main() -> int:
    options = _parser().parse_args()
    try:
        spoken = recordings(options)
    except ValueError as error:
        print(f"bench_server: {error}", file=sys.stderr)
        return 1
    rounds = options.rounds or (1 if options.quick else 5)
    seconds = options.seconds or (1.0 if options.quick else 2.5)
    begun = time.perf_counter()
    rows: list[Any]
    models = SERVED | {NARROW: TRAINED[NARROW]}
    with sitting(options, models, {"rounds": rounds, "seconds a round": seconds}) as held:
        data = ("--data", options.data) if options.data else ()
        with (
            program("baselines.network_alone", *flags(options), *data) as alone,
            started(held, spoken, options.threads) as tritons,
        ):
            bench = Bench(
                held,
                alone,
                spoken,
                options.callers,
                options.streams,
                rounds,
                seconds,
                options.quick,
                flags(options),
                data,
                tritons,
            )
            rows = measured(PARTS, options.only, bench)
        text = report.table(rows)
    leave(options, "serving", held.conditions, text, rows)
    print(f"\n{time.perf_counter() - begun:.0f} s in all")
    return 0


def _parser() -> argparse.ArgumentParser:
    options = parser(__doc__, PARTS)
    options.add_argument("--callers", type=int, default=64, metavar="N", help="callers of whole recordings (64)")
    options.add_argument("--streams", type=int, default=64, metavar="N", help="streams of the closed loop (64)")
    return options


if __name__ == "__main__":
    sys.exit(main())
