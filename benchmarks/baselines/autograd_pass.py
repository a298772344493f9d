"""One plain autograd pass after the other in one process, with no server: torch's loss.backward() over a packed batch.

A program of bench_training.py: asked [model, recordings in a batch, seconds], it answers with the round's numbers. As
many threads as a server would take for the network, unless a number of them is given.
"""

import argparse
import dataclasses
import pathlib
import time

import torch
from seqloom import ModelSpec
from seqloom_server.engine.models.served_weights import threads_for
from seqloom_server.nn import spec as server
from torch.nn.utils.rnn import pack_sequence

from benchmarks.harness.child_process import questions, say
from benchmarks.harness.rounds import Tally
from benchmarks.loads.training_workload import TRAINED, Labelled, labelled
from benchmarks.loads.workload import batches, from_folder, synthetic

_CELLS = {"elman": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}


class Network(torch.nn.Module):
    """Torch's own recurrent and linear layer, with weights drawn as a model's are."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.threads = threads_for(server.ModelSpec.from_json(dataclasses.asdict(spec)))
        self._rnn = _CELLS[spec.cell](spec.input_size, spec.hidden_size)
        self._output = torch.nn.Linear(spec.hidden_size, spec.output_size)

    def differentiate(self, batch: list[Labelled]) -> float:
        """Leaves the gradient of the summed cross-entropy with the parameters; returns the loss."""
        self.zero_grad(set_to_none=True)
        frames = pack_sequence([torch.from_numpy(each.frames) for each in batch], enforce_sorted=False)
        labels = pack_sequence([torch.from_numpy(each.labels).long() for each in batch], enforce_sorted=False)
        hidden, _ = self._rnn(frames)
        loss = torch.nn.functional.cross_entropy(self._output(hidden.data), labels.data, reduction="sum")
        loss.backward()
        return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--data", type=pathlib.Path)
    options = parser.parse_args()
    recordings = from_folder(options.data) if options.data else synthetic()
    networks = {name: Network(spec) for name, spec in TRAINED.items()}
    examples = {name: labelled(recordings, spec) for name, spec in TRAINED.items()}
    say("ready")
    for model, size, seconds in questions():
        torch.set_num_threads(options.threads or networks[model].threads)
        tally = Tally(seconds)
        for batch in batches(examples[model], size):
            begun = time.perf_counter()
            assert networks[model].differentiate(batch) > 0
            for each in batch:
                tally.add(len(each), begun)
            if not tally.running:
                break
        say(tally.result())


if __name__ == "__main__":
    main()
