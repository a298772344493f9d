"""What a precision costs networks that the service itself has trained on recordings: how often each is right."""

import json
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np
from cnn_rnn import KINDS, Data, Kind, accuracy
from recordings import Corpus
from seqloom import AsyncClient

from benchmarks.harness.rounds import Result
from benchmarks.harness.table_rows import Row
from benchmarks.setup.server_bench import ServerBench

_PRECISIONS = ("bf16", "int8")


def trained(bench: ServerBench, corpus: Corpus, epochs: int) -> Iterator[Row]:
    """Networks of each kind in each precision, beside themselves in float32; a round is a seed. Means of shares, and
    the largest differences."""
    data = Data(corpus.training, corpus.held_out, raw=False)
    for kind in KINDS:
        if not kind.raw:
            rounds = [
                bench.loop.run(_compared(bench, kind, data, len(corpus.classes), seed, epochs))
                for seed in range(bench.rounds)
            ]
            shares = ("right", "right_rounded", "same_labels")
            for precision in _PRECISIONS:
                own = [each[precision] for each in rounds]
                values = {
                    name: float((np.mean if name in shares else max)([each[name] for each in own])) for name in own[0]
                }
                yield Row("recordings told apart", f"{kind.name}, {precision}", values, own)


async def _compared(
    bench: ServerBench, kind: Kind, data: Data, classes: int, seed: int, epochs: int
) -> dict[str, Result]:
    """Trains one network; returns what each precision makes of it."""
    full = await accuracy(bench.client, kind, classes, data, seed, epochs)
    name = f"{kind.name}-{seed}"
    return {each: {"right": full} | await _beside(bench.client, name, data, each) for each in _PRECISIONS}


async def _beside(client: AsyncClient, name: str, data: Data, precision: str) -> Result:
    """Serves a network in a precision; returns how often it is right, the share of frames with the same label, and the
    largest differences of a probability, a hidden state and, relative to the largest one, a logit."""
    rounded = f"{name}-{precision}"
    with tempfile.TemporaryDirectory() as path:
        place = pathlib.Path(path) / "model"
        await client.export_model(name, place)
        config = place / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"precision": precision}))
        await client.import_model(rounded, place)
    apart, largest = {}, {}
    for output in ("hidden", "logits", "probs"):
        one, other = [(await client.infer(each, data.test, outputs=output)).outputs for each in (name, rounded)]
        apart[output] = max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))
        largest[output] = max(float(np.abs(a).max()) for a in one)
    heard = np.array([probs.mean(axis=0).argmax() for probs in other])
    same = np.concatenate([a.argmax(1) == b.argmax(1) for a, b in zip(one, other, strict=True)])
    return {
        "right_rounded": float((heard == data.test_digits).mean()),
        "same_labels": float(same.mean()),
        "probability": apart["probs"],
        "hidden_state": apart["hidden"],
        "logit": apart["logits"] / largest["logits"],
    }
