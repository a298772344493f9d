"""The network alone in one process, with no server: torch over a packed batch.

Asked ["labels", model, recordings in a batch, seconds], it answers with the numbers of a round that finds a label for
each frame; asked ["autograd", ...], of one loss.backward() after the other; asked ["streams", model, streams, seconds],
of one frame of each stream after the other, whose hidden states it keeps. A model is a name or the fields of its
specification. Threads are, unless a number of them is given, torch's own choice; of autograd and of streams as many as
a server takes.
"""

import argparse
import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Iterable

import numpy as np
import torch
from seqloom import ModelSpec
from seqloom_server.engine.models.served_weights import threads_for
from seqloom_server.nn import spec as server
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from benchmarks.harness.child_process import questions, say
from benchmarks.harness.rounds import Result, Tally
from benchmarks.loads.group_load import frames_of
from benchmarks.loads.training_workload import TRAINED, Labelled, labelled
from benchmarks.loads.workload import MODELS, batches, chunks, from_folder, synthetic

_CELLS = {"elman": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}

State = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class Network(torch.nn.Module):
    """Torch's own recurrent and linear layer, with weights drawn as a model's are."""

    def __init__(self, device: str, spec: ModelSpec) -> None:
        super().__init__()
        self.threads = threads_for(server.ModelSpec.from_json(dataclasses.asdict(spec)))
        self._rnn = _CELLS[spec.cell](spec.input_size, spec.hidden_size)
        self._output = torch.nn.Linear(spec.hidden_size, spec.output_size)
        self._device = torch.device(device)
        self.to(self._device)

    @torch.inference_mode()
    def labels(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Returns [T_i] int32 for each [T_i, D]."""
        hidden, _ = self._rnn(self._packed(batch))
        best = self._output(hidden.data).argmax(1).to(torch.int32).cpu()
        return [each.numpy() for each in unpack_sequence(hidden._replace(data=best))]

    def autograd(self, batch: list[Labelled]) -> list[Labelled]:
        """Leaves the gradient of the summed cross-entropy with the parameters; returns the batch."""
        self.zero_grad(set_to_none=True)
        hidden, _ = self._rnn(self._packed(each.frames for each in batch))
        labels = self._packed(each.labels for each in batch).data.long()
        loss = torch.nn.functional.cross_entropy(self._output(hidden.data), labels, reduction="sum")
        loss.backward()
        assert loss.item() > 0
        return batch

    @torch.inference_mode()
    def step(self, frames: np.ndarray, state: State | None) -> tuple[np.ndarray, State]:
        """Returns [n] int32 for the next frames of n streams, [n, D], and their states; None: zeros."""
        hidden, state = self._rnn(torch.from_numpy(frames).to(self._device)[None], state)
        return self._output(hidden[0]).argmax(1).to(torch.int32).cpu().numpy(), state

    def _packed(self, sequences: Iterable[np.ndarray]) -> PackedSequence:
        return pack_sequence([torch.from_numpy(each) for each in sequences], enforce_sorted=False).to(self._device)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--data", type=pathlib.Path)
    options = parser.parse_args()
    recordings = from_folder(options.data) if options.data else synthetic()
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    own_choice, networks = torch.get_num_threads(), functools.cache(functools.partial(Network, device))
    examples = functools.cache(functools.partial(labelled, tuple(recordings)))
    say("ready")
    for kind, model, size, seconds in questions():
        spec = (MODELS | TRAINED)[model] if isinstance(model, str) else ModelSpec(**model)
        network = networks(spec)
        if kind == "streams":
            torch.set_num_threads(options.threads or network.threads)
            say(streams(network, frames_of(chunks(recordings, 1), size), seconds))
            continue
        run = network.labels if kind == "labels" else network.autograd
        torch.set_num_threads(options.threads or (own_choice if kind == "labels" else network.threads))
        tally = Tally(seconds)
        for batch in batches(recordings if kind == "labels" else examples(spec), size):
            begun = time.perf_counter()
            assert sum(map(len, run(batch))) == sum(map(len, batch))
            for each in batch:
                tally.add(len(each), begun)
            if not tally.running:
                break
        say(tally.result())


def streams(network: Network, frames: list[np.ndarray], seconds: float) -> Result:
    """One round of streams: a frame of each, [n, 1, D], once there are labels of the one before."""
    tally, state = Tally(seconds), None
    for each in itertools.cycle(frames):
        begun = time.perf_counter()
        labels, state = network.step(each[:, 0], state)
        assert len(labels) == len(each)
        tally.add(len(each), begun)
        if not tally.running:
            break
    return tally.result()


if __name__ == "__main__":
    main()
