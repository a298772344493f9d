"""Measures a server of its own: whole recordings, live streams and real-time streams, beside the network alone.

    python benchmarks/bench_server.py [--quick] [--only callers streams] [--data FOLDER-OF-WAV-FILES] [--tune]

It prints a table and keeps it, with every round, in benchmarks/results/. Only ratios of one run can be compared.
"""

import argparse
import contextlib
import pathlib
import sys
import tempfile
import time

import paths  # noqa: F401  puts examples/ on the path
import report
import seqloom
import tune
from measuring import Loop
from own_server import own_server
from parts import PARTS, Bench, Row
from programs import program
from workload import MODELS, from_folder, synthetic

_RESULTS = pathlib.Path(__file__).resolve().parent / "results"


def main() -> int:
    options = _parser().parse_args()
    try:
        recordings = from_folder(options.data) if options.data else synthetic()
    except ValueError as error:
        print(f"bench_server: {error}", file=sys.stderr)
        return 1
    rounds = options.rounds or (1 if options.quick else 3 if options.tune else 5)
    seconds = options.seconds or (1.0 if options.quick or options.tune else 3.0)
    settings = {
        "recordings": "a folder of WAV files" if options.data else "synthetic, lengths as of spoken digits",
        "rounds": rounds,
        "seconds a round": seconds,
    }
    begun = time.perf_counter()
    with contextlib.ExitStack() as stack:
        models = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        loop = stack.enter_context(Loop())
        flags = ("--threads", str(options.threads)) if options.threads else ()
        server = stack.enter_context(own_server(models, *flags))
        client = loop.run(_client_with_models(server.address))
        stack.callback(lambda: loop.run(client.close()))
        taken = report.conditions(loop.run(client.server_info()).device, settings)
        if options.tune:
            rows, text = tune.tune(loop, models, recordings, options.callers, rounds, seconds)
        else:
            data = ("--data", options.data) if options.data else ()
            alone = stack.enter_context(program("alone", *flags, *data))
            bench = Bench(loop, server, client, alone, recordings, options.callers, options.streams, rounds, seconds)
            rows = _measured(bench, options.only)
            text = report.table(rows)
    print(f"\n{text}\n\n{time.perf_counter() - begun:.0f} s in all")
    folder = options.out or (None if options.quick else _RESULTS)
    if folder:
        name = f"{'tuning' if options.tune else 'serving'}-{taken['device']}"
        report.save(folder, name, taken, text, rows)
    return 0


def _measured(bench: Bench, names: list[str]) -> list[Row]:
    rows = []
    for name in names:
        for row in PARTS[name](bench):
            rows.append(row)
            shown = ", ".join(f"{key} {value:.4g}" for key, value in row.values.items())
            print(f"{row.work}, {row.model}: {shown}", file=sys.stderr, flush=True)
    return rows


async def _client_with_models(address: str) -> seqloom.AsyncClient:
    client = seqloom.AsyncClient(address)
    for name, spec in MODELS.items():
        await client.create_model(name, spec)
    return client


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round of each; kept only where --out is given")
    parser.add_argument("--tune", action="store_true", help="the switch interval and thread counts instead")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts (all)")
    parser.add_argument("--data", type=pathlib.Path, metavar="DIR", help="a folder of WAV files (synthetic recordings)")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="where the results go (benchmarks/results)")
    parser.add_argument("--callers", type=int, default=64, metavar="N", help="callers of whole recordings (64)")
    parser.add_argument("--streams", type=int, default=64, metavar="N", help="streams of the closed loop (64)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="torch's, here and there (its own choice)")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each measuring (5)")
    parser.add_argument("--seconds", type=float, metavar="X", help="length of a round (3)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
