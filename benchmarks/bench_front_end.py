"""Measures what one process can feed: the CPU time that each kind of message costs a server, beside bare gRPC.

    python -m benchmarks.bench_front_end [--quick] [--only streams calls]

The network is tiny, so that nearly all of the time goes into messages. The load has the machine's cores in common with
the server, so the server's CPU time is the number to go by, and rates are what both reached together. It prints a table
and keeps it, with every round, in benchmarks/results/. Only ratios of one run can be compared.
"""

from benchmarks.harness.child_process import run
from benchmarks.harness.table_rows import Part
from benchmarks.parts import front_end
from benchmarks.setup.server_bench import measure, parser

PARTS: dict[str, Part] = {"streams": front_end.streams, "calls": front_end.calls}


def main() -> int:
    options = parser(__doc__, PARTS).parse_args()
    measure("front-end", options, PARTS, front_end.MODELS, rounds=3, seconds=(0.7, 0.2))
    return 0


if __name__ == "__main__":
    run(main)
