"""The network alone in one process, with no server: torch over a packed batch, a label for each frame.

A program of bench_server.py and bench_sweeps.py: asked [model, recordings in a batch, seconds], it answers with the
round's numbers. A model is a name or the fields of its specification. The threads are torch's own choice, as a server's
are, unless a number of them is given.
"""

import argparse
import functools
import pathlib
import time

import numpy as np
import torch
from seqloom import ModelSpec

from benchmarks.harness.child_process import questions, say
from benchmarks.harness.rounds import Tally
from benchmarks.loads.workload import MODELS, batches, from_folder, synthetic

_CELLS = {"elman": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}


class Network:
    """Torch's own recurrent and linear layer, with weights drawn as a model's are."""

    def __init__(self, spec: ModelSpec) -> None:
        self._rnn = _CELLS[spec.cell](spec.input_size, spec.hidden_size)
        self._output = torch.nn.Linear(spec.hidden_size, spec.output_size)

    @torch.inference_mode()
    def labels(self, sequences: list[np.ndarray]) -> list[np.ndarray]:
        """Returns [T_i] int32 for each [T_i, D]."""
        packed = torch.nn.utils.rnn.pack_sequence([torch.from_numpy(x) for x in sequences], enforce_sorted=False)
        hidden, _ = self._rnn(packed)
        best = self._output(hidden.data).argmax(1).to(torch.int32)
        labels = torch.nn.utils.rnn.unpack_sequence(hidden._replace(data=best))
        return [each.numpy() for each in labels]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--data", type=pathlib.Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    recordings = from_folder(options.data) if options.data else synthetic()
    networks = functools.cache(Network)
    say("ready")
    for model, size, seconds in questions():
        network = networks(MODELS[model] if isinstance(model, str) else ModelSpec(**model))
        tally = Tally(seconds)
        for batch in batches(recordings, size):
            begun = time.perf_counter()
            assert sum(map(len, network.labels(batch))) == sum(map(len, batch))
            for frames in batch:
                tally.add(len(frames), begun)
            if not tally.running:
                break
        say(tally.result())


if __name__ == "__main__":
    main()
