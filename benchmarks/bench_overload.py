"""Measures what a server does when more is offered than it can do, beside Triton: open loop, not closed.

Whole sequences at 0.5 to 5 times the peak: what is answered within a second, refused, and computed for nobody; live
streams at as many times the count that is on time; a modest caller beside one that floods the server. The server, the
callers and Triton are processes of their own on the same cores.

    python -m benchmarks.bench_overload [--quick] [--only calls streams] [--rounds 3]

It prints a table and keeps it, with every round and a plot, in benchmarks/results/, and writes the tables in
docs/performance.md anew. Only ratios of one run can be compared. Where Triton is not there
(benchmarks/peers/README.md), it says so and measures the rest.
"""

from benchmarks.harness import plot
from benchmarks.harness.child_process import run
from benchmarks.harness.table_rows import Part
from benchmarks.loads.workload import MODELS
from benchmarks.parts.overload import calls, neighbours, page, streams
from benchmarks.setup.server_bench import RESULTS, measure, parser

PARTS: dict[str, Part] = {
    "calls": calls.calls,
    "streams": streams.streams,
    "neighbours": neighbours.neighbours,
}


def main() -> int:
    options = parser(__doc__, PARTS).parse_args()
    kept = measure("overload", options, PARTS, MODELS, rounds=1, seconds=(1.8, 0.5))
    if kept and {"calls", "streams"} & set(options.only):
        plot.draw(kept)
        if kept.parent == RESULTS and options.only == list(PARTS):
            page.write(kept)
    return 0


if __name__ == "__main__":
    run(main)
