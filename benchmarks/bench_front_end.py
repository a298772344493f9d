"""Measures what one process can feed: the CPU time that each kind of message costs a server, beside bare gRPC.

    python benchmarks/bench_front_end.py [--quick] [--only streams calls]

The network is tiny, so that nearly all of the time goes into messages. The load has the machine's cores in common with
the server, so the server's CPU time is the number to go by, and rates are what both reached together. It prints a table
and keeps it, with every round, in benchmarks/results/. Only ratios of one run can be compared.
"""

import sys
import time

import paths  # noqa: F401  puts examples/ on the path
from front_end_parts import MODELS, PARTS, FrontEndBench, table
from programs import program
from rows import measured
from sitting import leave, parser, sitting


def main() -> int:
    options = parser(__doc__, PARTS).parse_args()
    rounds = options.rounds or (1 if options.quick else 3)
    seconds = options.seconds or (0.2 if options.quick else 0.7)
    begun = time.perf_counter()
    with (
        sitting(options, MODELS, {"rounds": rounds, "seconds a round": seconds}) as held,
        program("front_end_load") as load,
        program("front_end_echo") as echo,
    ):
        rows = measured(PARTS, options.only, FrontEndBench(held.server, load, echo, rounds, seconds))
    leave(options, "front-end", held.conditions, table(rows), rows)
    print(f"\n{time.perf_counter() - begun:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
