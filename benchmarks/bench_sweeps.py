"""Measures how the cost of a server's work grows: with callers, streams, chunks, lengths, widths, and with company.

    python benchmarks/bench_sweeps.py [--quick] [--only streams mixed] [--streams 1 100 1000] [--chunks 5 20]

It prints a table and keeps it, with every round and a plot, in benchmarks/results/. Only ratios of one run can be
compared.
"""

import argparse
import sys
import time

import live_sweeps
import mixed_traffic
import paths  # noqa: F401  puts examples/ on the path
import plot
import report
import sweeps
from programs import program
from rows import Part, measured
from sitting import flags, leave, parser, recordings, sitting
from sweep_bench import SweepBench, add_axes, axes
from workload import MODELS

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
        program("alone", *flags(options), *data) as alone,
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
