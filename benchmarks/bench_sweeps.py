"""Measures how the cost of a server's work grows: with callers, streams, chunks, lengths, widths, and with company.

    python -m benchmarks.bench_sweeps [--quick] [--only streams mixed] [--streams 1 100 1000] [--chunks 5 20]

It prints a table and keeps it, with every round and a plot, in benchmarks/results/. Only ratios of one run can be
compared.
"""

import argparse
import sys
import time

from benchmarks.harness import plot
from benchmarks.harness import results_file as report
from benchmarks.harness.child_process import program
from benchmarks.harness.table_rows import Part, measured
from benchmarks.loads.workload import MODELS
from benchmarks.parts import mixed_traffic
from benchmarks.parts import sequence_sweeps as sweeps
from benchmarks.parts import stream_sweeps as live_sweeps
from benchmarks.setup.server_setup import flags, leave, parser, recordings, sitting
from benchmarks.setup.sweep_bench import SweepBench, add_axes, axes

PARTS: dict[str, Part] = {
    "callers": sweeps.callers,
    "streams": live_sweeps.streams,
    "lengths": sweeps.lengths,
    "widths": sweeps.widths,
    "mixed": mixed_traffic.mixed,
    "idle": live_sweeps.idle,
}


def main() -> int:
    options = _parser().parse_args()
    try:
        spoken = recordings(options)
    except ValueError as error:
        print(f"bench_sweeps: {error}", file=sys.stderr)
        return 1
    rounds = options.rounds or (1 if options.quick else 3)
    seconds = options.seconds or (0.1 if options.quick else 0.4)
    along = axes(options)
    models = MODELS | (sweeps.wide_models(along["widths"]) if "widths" in options.only else {})
    data = ("--data", options.data) if options.data else ()
    begun = time.perf_counter()
    with (
        sitting(options, models, {"rounds": rounds, "seconds a round": seconds}) as held,
        program("baselines.network_alone", *flags(options), *data) as alone,
    ):
        bench = SweepBench(held, alone, spoken, along, rounds, seconds, flags(options))
        rows = measured(PARTS, options.only, bench)
    path = leave(options, "sweeps", held.conditions, report.table(rows), rows)
    if path:
        plot.draw(path)
    print(f"\n{time.perf_counter() - begun:.0f} s in all")
    return 0


def _parser() -> argparse.ArgumentParser:
    options = parser(__doc__, PARTS)
    add_axes(options)
    return options


if __name__ == "__main__":
    sys.exit(main())
