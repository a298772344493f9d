"""The network alone in one process, with no server: torch over a packed batch, a label for each frame.

A program of bench_server.py: asked [model, recordings in a batch, seconds], it answers with the round's numbers. The
threads are torch's own choice, as a server's are, unless a number of them is given.
"""

import argparse
import pathlib
import time

import numpy as np
import paths  # noqa: F401  puts examples/ on the path
import torch
from measuring import Tally
from programs import questions, say
from seqloom import ModelSpec
from workload import MODELS, batches, from_folder, synthetic


class Network:
    """Torch's own RNN and linear layer, with weights drawn as a model's are."""

    def __init__(self, spec: ModelSpec) -> None:
        self._rnn = torch.nn.RNN(spec.input_size, spec.hidden_size)
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
    networks = {name: Network(spec) for name, spec in MODELS.items()}
    say("ready")
    for model, size, seconds in questions():
        tally = Tally(seconds)
        for batch in batches(recordings, size):
            begun = time.perf_counter()
            assert sum(map(len, networks[model].labels(batch))) == sum(map(len, batch))
            for frames in batch:
                tally.add(len(frames), begun)
            if not tally.running:
                break
        say(tally.result())


if __name__ == "__main__":
    main()
