"""Measures how the cost of a server's work grows: with callers, streams, chunks, lengths, widths, and with company.

    python -m benchmarks.bench_sweeps [--quick] [--only streams mixed] [--streams 1 100 1000] [--chunks 5 20]

It prints a table and keeps it, with every round and a plot, in benchmarks/results/. Only ratios of one run can be
compared.
"""

from benchmarks.harness import plot
from benchmarks.harness.child_process import run
from benchmarks.harness.table_rows import Part
from benchmarks.loads.workload import MODELS
from benchmarks.parts import mixed_traffic, sequence_sweeps, stream_sweeps
from benchmarks.setup.server_bench import AXES, measure, parser

PARTS: dict[str, Part] = {
    "callers": sequence_sweeps.callers,
    "streams": stream_sweeps.streams,
    "lengths": sequence_sweeps.lengths,
    "widths": sequence_sweeps.widths,
    "mixed": mixed_traffic.mixed,
    "idle": stream_sweeps.idle,
}


def main() -> int:
    own = parser(__doc__, PARTS)
    for name, (values, _, told) in AXES.items():
        own.add_argument(f"--{name}", nargs="+", type=int, metavar="N", help=f"{told} ({' '.join(map(str, values))})")
    options = own.parse_args()
    axes = {name: sorted(getattr(options, name) or AXES[name][options.quick]) for name in AXES}
    models = MODELS | (sequence_sweeps.wide_models(axes["widths"]) if "widths" in options.only else {})
    kept = measure("sweeps", options, PARTS, models, rounds=3, seconds=(0.4, 0.1), axes=axes)
    if kept:
        plot.draw(kept)
    return 0


if __name__ == "__main__":
    run(main)
