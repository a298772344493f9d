"""Measures whether a CNN in front of an RNN helps recognition: trains networks with and without it on a server.

The data is a folder of WAV files named {digit}_{speaker}_{index}.wav, of which index 0 to 4 are the test set. All
networks train at the same time, as runs of one server. A recording's digit is the most probable class on the mean of
its frames.
"""

import argparse
import asyncio
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import seqloom
from features import BINS, HOP, RATE, log_mel
from matplotlib.figure import Figure
from own_server import own_server
from recordings import Recording, folder
from resampling import resample

ROOT = pathlib.Path(__file__).resolve().parent.parent
HIDDEN, BATCH, WIDTH = 128, 32, 5
LEARNING_RATE, CLIP_NORM = 1e-3, 1.0


@dataclass(frozen=True)
class Kind:
    """One of the compared networks, and its inputs: log-mel features, or raw samples."""

    cell: str
    conv: bool
    raw: bool = False

    @property
    def name(self) -> str:
        return f"{'conv-' if self.conv else ''}{self.cell}{'-raw' if self.raw else ''}"

    def spec(self, classes: int) -> seqloom.ModelSpec:
        """Returns the specification; the convolution looks back at five frames."""
        front = {"conv_channels": HIDDEN, "conv_width": WIDTH} if self.conv else {}
        inputs = HOP if self.raw else BINS
        return seqloom.ModelSpec(cell=self.cell, input_size=inputs, hidden_size=HIDDEN, output_size=classes, **front)


KINDS = [
    *(Kind(cell, conv) for cell in ("elman", "gru", "lstm") for conv in (False, True)),
    Kind("elman", False, raw=True),
    Kind("elman", True, raw=True),
]


class Data:
    """Training and test sequences in one form, at mean 0 and deviation 1 over the training set."""

    def __init__(self, training: Sequence[Recording], test: Sequence[Recording], raw: bool) -> None:
        self.training, self.test = ([_frames(one, raw) for one in each] for each in (training, test))
        every = np.concatenate(self.training)
        mean, deviation = every.mean(axis=0), every.std(axis=0) + 1e-6
        if raw:  # samples of a frame are alike
            mean, deviation = every.mean(), every.std()
        self.training, self.test = ([(x - mean) / deviation for x in each] for each in (self.training, self.test))
        self.digits = [int(one.labels[0]) for one in training]
        self.test_digits = np.array([one.labels[0] for one in test])


def _frames(recording: Recording, raw: bool) -> np.ndarray:
    if not raw:
        # at their own rate: above half of it there is nothing, and at deviation 1 nothing would be noise
        return log_mel(recording.samples, recording.rate, at=recording.rate)
    samples = recording.samples
    if recording.rate != RATE:
        samples = resample(samples, recording.rate, RATE)
    return np.pad(samples, (0, -len(samples) % HOP)).reshape(-1, HOP)


async def accuracy(client: seqloom.AsyncClient, kind: Kind, classes: int, data: Data, seed: int, epochs: int) -> float:
    """Trains one network on the server; returns the share of correct test recordings."""
    name, random = f"{kind.name}-{seed}", np.random.default_rng(seed)
    await client.create_model(name, kind.spec(classes), seed=seed)
    run = await client.create_run(
        name, optimizer=seqloom.Adam(lr=LEARNING_RATE), clip_norm=CLIP_NORM, checkpoint_interval=0
    )
    async with run:
        for _ in range(epochs):
            order = random.permutation(len(data.training))
            for begin in range(0, len(order), BATCH):
                chosen = order[begin : begin + BATCH]
                xs = [data.training[i] for i in chosen]
                call = run.forward_backward(
                    xs, [np.full(len(x), data.digits[i]) for x, i in zip(xs, chosen, strict=True)], reduction="mean"
                )
                await run.step()
                await call
        await run.publish()
    found = await client.infer(name, data.test, outputs="probs")
    heard = np.array([probs.mean(axis=0).argmax() for probs in found.outputs])
    await run.delete()
    return float((heard == data.test_digits).mean())


async def measure(
    address: str, kinds: Sequence[Kind], data: dict[bool, Data], classes: int, seeds: int, epochs: int
) -> dict[Kind, list[float]]:
    """Returns the accuracies of each network, one for each seed."""
    results: dict[Kind, list[float]] = {}
    async with seqloom.AsyncClient(address, timeout=600) as client:
        for seed in range(seeds):
            each = [accuracy(client, kind, classes, data[kind.raw], seed, epochs) for kind in kinds]
            for kind, value in zip(kinds, await asyncio.gather(*each), strict=True):
                results.setdefault(kind, []).append(value)
            print(f"seed {seed}: " + ", ".join(f"{k.name} {v[-1]:.1%}" for k, v in results.items()), flush=True)
    return results


def table(results: dict[Kind, list[float]]) -> str:
    """Returns the results in Markdown."""
    lines = ["| network | test recordings right, mean | by seed |", "| --- | --- | --- |"]
    for kind, values in results.items():
        lines.append(f"| {kind.name} | {np.mean(values):.1%} | {', '.join(f'{value:.1%}' for value in values)} |")
    return "\n".join(lines) + "\n"


def draw(path: pathlib.Path, results: dict[Kind, list[float]]) -> None:
    """Writes a PNG: a bar for each network's mean, a dot for each seed."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axis = figure.subplots()
    names = [kind.name for kind in results]
    axis.barh(names, [100 * np.mean(values) for values in results.values()], color="#8fb3d9")
    for name, values in zip(names, results.values(), strict=True):
        axis.plot([100 * value for value in values], [name] * len(values), "o", color="#1f4e79", markersize=4)
    axis.invert_yaxis()
    axis.set(xlabel="test recordings right, %")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Runs the example; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("SEQLOOM_DATA"), metavar="DIR", help="also SEQLOOM_DATA")
    parser.add_argument("--epochs", type=int, default=15, metavar="N")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--models", nargs="+", choices=[kind.name for kind in KINDS], metavar="NAME")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build", metavar="DIR", help="of table and plot")
    options = parser.parse_args()
    if options.epochs < 1 or options.seeds < 1:
        parser.error("--epochs and --seeds must be above 0")
    if not options.data or not pathlib.Path(options.data).is_dir():
        print("cnn_rnn: skipped, as there is no folder of recordings: name one with --data DIR")
        return 0
    kinds = [kind for kind in KINDS if not options.models or kind.name in options.models]
    try:
        corpus = folder(pathlib.Path(options.data))
        data = {raw: Data(corpus.training, corpus.held_out, raw) for raw in {kind.raw for kind in kinds}}
        with tempfile.TemporaryDirectory() as models, own_server(pathlib.Path(models)) as server:
            results = asyncio.run(
                measure(server.address, kinds, data, len(corpus.classes), options.seeds, options.epochs)
            )
    except (seqloom.SeqloomError, ValueError, RuntimeError, OSError) as error:
        print(f"cnn_rnn: {error}", file=sys.stderr)
        return 1
    draw(options.out / "cnn_rnn.png", results)
    (options.out / "cnn_rnn.md").write_text(table(results), encoding="utf-8")
    print(table(results), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
