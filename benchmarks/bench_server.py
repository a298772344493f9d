"""Measures a server of its own beside what stands for the best there is, and holds each number against its goal.

Whole recordings, live and real-time streams beside Triton and the network alone; stream groups beside bare gRPC and the
network, and beside single streams; training beside autograd; what a frame costs as streams come, and beside its bare
products; an idle stream's memory, and padding.

    python -m benchmarks.bench_server [--quick] [--only callers streams] [--data FOLDER-OF-WAV-FILES]

It prints a table and keeps it, with every round, in benchmarks/results/. Only ratios of one run can be compared.
Where Triton is not there (benchmarks/peers/README.md), it says so and measures the rest.
"""

from benchmarks.harness.child_process import run
from benchmarks.harness.table_rows import Part
from benchmarks.loads.training_workload import NARROW, TRAINED
from benchmarks.loads.workload import SERVED
from benchmarks.parts import ceiling, costs, groups, serving, stream_sweeps, streams, training
from benchmarks.setup.server_bench import measure, parser

PARTS: dict[str, Part] = {
    "callers": serving.callers,
    "connections": serving.connections,
    "streams": streams.streams,
    "realtime": streams.real_time,
    "groups": groups.groups,
    "blocking": serving.blocking,
    "forward_backward": training.forward_backward,
    "gradients": training.gradients,
    "growth": costs.growth,
    "idle": stream_sweeps.idle,
    "ceiling": ceiling.ceiling,
    "padding": costs.padding,
}


def main() -> int:
    own = parser(__doc__, PARTS)
    own.add_argument("--callers", type=int, default=64, metavar="N", help="callers of whole recordings (64)")
    own.add_argument("--streams", type=int, default=64, metavar="N", help="streams of the closed loop (64)")
    options = own.parse_args()
    models, sizes = SERVED | {NARROW: TRAINED[NARROW]}, {"callers": options.callers, "streams": options.streams}
    measure("serving", options, PARTS, models, rounds=5, seconds=(2.5, 1.0), **sizes)
    return 0


if __name__ == "__main__":
    run(main)
