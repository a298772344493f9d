"""What bfloat16 costs on real speech: networks trained through the service, then served in full and in bfloat16.

    python benchmarks/bench_precision.py --data FOLDER-OF-WAV-FILES [--seeds 3] [--epochs 15]

The folder and the training are those of examples/cnn_rnn.py. The table goes to benchmarks/results/.
"""

import argparse
import asyncio
import json
import pathlib
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import paths  # noqa: F401  puts examples/ on the path
import report
import seqloom
from cnn_rnn import KINDS, Data, Kind, accuracy
from own_server import own_server
from recordings import folder
from sitting import RESULTS


@dataclass
class Row:
    """One network, medians and means over `rounds`, a seed each. full and bf16: shares of test recordings right."""

    model: str
    full: float
    bf16: float
    same_labels: float
    farthest: float
    rounds: list[dict[str, float]]


async def compare(client: seqloom.AsyncClient, kind: Kind, data: Data, classes: int, seed: int, epochs: int) -> Any:
    """Trains one network; returns its accuracies, the share of frames with the same label, and the largest difference
    of a probability."""
    full = await accuracy(client, kind, classes, data, seed, epochs)
    name, halved = f"{kind.name}-{seed}", f"{kind.name}-{seed}-bf16"
    with tempfile.TemporaryDirectory() as path:
        place = pathlib.Path(path) / "model"
        await client.export_model(name, place)
        config = place / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"precision": "bf16"}))
        await client.import_model(halved, place)
    one, other = [(await client.infer(each, data.test, outputs="probs")).outputs for each in (name, halved)]
    heard = np.array([probs.mean(axis=0).argmax() for probs in other])
    same = np.concatenate([a.argmax(1) == b.argmax(1) for a, b in zip(one, other, strict=True)])
    return {
        "full": full,
        "bf16": float((heard == data.test_digits).mean()),
        "same_labels": float(same.mean()),
        "farthest": max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True)),
    }


async def measure(address: str, kinds: list[Kind], data: Data, classes: int, seeds: int, epochs: int) -> list[Row]:
    """Returns a row for each kind."""
    rows = []
    async with seqloom.AsyncClient(address, timeout=600) as client:
        for kind in kinds:
            rounds = [await compare(client, kind, data, classes, seed, epochs) for seed in range(seeds)]
            means = {key: float(np.mean([each[key] for each in rounds])) for key in ("full", "bf16", "same_labels")}
            rows.append(Row(kind.name, **means, farthest=max(each["farthest"] for each in rounds), rounds=rounds))
            print(rows[-1], flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--epochs", type=int, default=15, metavar="N")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, metavar="DIR")
    options = parser.parse_args()
    kinds = [kind for kind in KINDS if not kind.raw]
    try:
        corpus = folder(options.data)
    except (ValueError, OSError) as error:
        print(f"bench_precision: {error}", file=sys.stderr)
        return 1
    data = Data(corpus.training, corpus.held_out, raw=False)
    with tempfile.TemporaryDirectory() as models, own_server(pathlib.Path(models)) as server:
        rows = asyncio.run(measure(server.address, kinds, data, len(corpus.classes), options.seeds, options.epochs))
    head = ["network", "right in float32", "right in bfloat16", "frames with the same label", "farthest probability"]
    lines = [[r.model, f"{r.full:.1%}", f"{r.bf16:.1%}", f"{r.same_labels:.2%}", f"{r.farthest:.3f}"] for r in rows]
    text = report.markdown([head, *lines])
    print(text)
    taken = report.conditions("cpu", {"recordings": "a folder of WAV files", "seeds": options.seeds})
    report.save(options.out, "precision-cpu", taken, text, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
