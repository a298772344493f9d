"""What bfloat16 and int8 cost networks that the service trains on real speech.

    python -m benchmarks.bench_precision --data FOLDER-OF-WAV-FILES [--rounds 3] [--epochs 15]

The folder and the training are those of examples/cnn_rnn.py; a round is a seed. It prints a table and keeps it in
benchmarks/results/.
"""

import functools
import sys

from recordings import folder

from benchmarks.harness.child_process import run
from benchmarks.parts import precision
from benchmarks.setup.server_bench import measure, parser


def main() -> int:
    own = parser(__doc__, {"trained": precision.trained})
    own.add_argument("--epochs", type=int, default=15, metavar="N", help="of each training (15)")
    options = own.parse_args()
    if not options.data:
        own.error("--data is needed: a network learns nothing from synthetic recordings")
    try:
        corpus = folder(options.data)
    except (ValueError, OSError) as error:
        print(f"bench_precision: {error}", file=sys.stderr)
        return 1
    parts = {"trained": functools.partial(precision.trained, corpus=corpus, epochs=options.epochs)}
    measure("precision", options, parts, {}, rounds=3, seconds=(0.0, 0.0))
    return 0


if __name__ == "__main__":
    run(main)
