"""Measures what one process can feed: the CPU time that each kind of message costs a server, beside bare gRPC.

    python -m benchmarks.bench_front_end [--quick] [--only streams calls]

The network is tiny, so that nearly all of the time goes into messages. The load has the machine's cores in common with
the server, so the server's CPU time is the number to go by, and rates are what both reached together. It prints a table
and keeps it, with every round, in benchmarks/results/. Only ratios of one run can be compared.
"""

import sys
import time

from benchmarks.harness.child_process import program
from benchmarks.harness.table_rows import measured
from benchmarks.parts.front_end import MODELS, PARTS, FrontEndBench, table
from benchmarks.setup.server_setup import leave, parser, sitting


def main() -> int:
    options = parser(__doc__, PARTS).parse_args()
    rounds = options.rounds or (1 if options.quick else 3)
    seconds = options.seconds or (0.2 if options.quick else 0.7)
    begun = time.perf_counter()
    with (
        sitting(options, MODELS, {"rounds": rounds, "seconds a round": seconds}) as held,
        program("loads.front_end_load") as load,
        program("baselines.grpc_echo") as echo,
    ):
        rows = measured(PARTS, options.only, FrontEndBench(held.server, load, echo, rounds, seconds))
    leave(options, "front-end", held.conditions, table(rows), rows)
    print(f"\n{time.perf_counter() - begun:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
