"""What the benchmark programs have in common: their options, recordings, and a server of their own with models."""

import argparse
import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import seqloom
from own_server import OwnServer, own_server

from benchmarks.harness import results_file as report
from benchmarks.harness.rounds import Loop
from benchmarks.loads.workload import from_folder, synthetic

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results"


@dataclass
class Sitting:
    """A server and its client, on the one loop. models: the server's folder of them. conditions: see report."""

    loop: Loop
    server: OwnServer
    client: seqloom.AsyncClient
    models: pathlib.Path
    conditions: dict[str, Any]


def parser(description: str | None, parts: Mapping[str, object]) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="one short round of each; kept only where --out is given")
    options.add_argument("--only", nargs="+", choices=parts, default=list(parts), help="these parts (all)")
    options.add_argument(
        "--data", type=pathlib.Path, metavar="DIR", help="a folder of WAV files (synthetic recordings)"
    )
    options.add_argument("--out", type=pathlib.Path, metavar="DIR", help="where the results go (benchmarks/results)")
    options.add_argument("--threads", type=int, default=0, metavar="N", help="torch's, here and there (its own choice)")
    options.add_argument("--rounds", type=int, metavar="N", help="rounds of each measuring (5)")
    options.add_argument("--seconds", type=float, metavar="X", help="length of a round (2.5; of training 3)")
    return options


def recordings(options: argparse.Namespace) -> list[np.ndarray]:
    """[frames, 160] float32 each. Raises ValueError where the folder that is named has none."""
    return from_folder(options.data) if options.data else synthetic()


def flags(options: argparse.Namespace) -> tuple[str, ...]:
    """What the server and the programs beside it are started with."""
    return ("--threads", str(options.threads)) if options.threads else ()


@contextlib.contextmanager
def sitting(
    options: argparse.Namespace,
    models: Mapping[str, seqloom.ModelSpec],
    settings: dict[str, Any],
    more: tuple[str, ...] = (),
) -> Iterator[Sitting]:
    """Runs a server with these models until the block ends; more: flags of it."""
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        loop = stack.enter_context(Loop())
        server = stack.enter_context(own_server(folder, *flags(options), *more))
        client = loop.run(_client_with_models(server.address, models))
        stack.callback(lambda: loop.run(client.close()))
        source = "a folder of WAV files" if options.data else "synthetic, lengths as of spoken digits"
        device = loop.run(client.server_info()).device
        yield Sitting(loop, server, client, folder, report.conditions(device, {"recordings": source, **settings}))


def leave(
    options: argparse.Namespace, name: str, taken: dict[str, Any], text: str, rows: list[Any]
) -> pathlib.Path | None:
    """Prints the table, and keeps it unless it was made in haste; returns the path of the JSON that it is kept in."""
    print(f"\n{text}")
    folder = options.out or (None if options.quick else RESULTS)
    if folder is None:
        return None
    return report.save(folder, f"{name}-{taken['device']}", taken, text, rows)


async def _client_with_models(address: str, models: Mapping[str, seqloom.ModelSpec]) -> seqloom.AsyncClient:
    client = seqloom.AsyncClient(address)
    for name, spec in models.items():
        await client.create_model(name, spec)
    return client
