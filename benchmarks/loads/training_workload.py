"""What training is measured with: networks, and recordings with a label for each frame."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from seqloom import ModelSpec

from benchmarks.loads.workload import LARGE, MODELS, SMALL

BINS = 40  # numbers of a frame, as log-mel frames have
NARROW, GRU, LSTM = "small-narrow", "gru", "lstm"
TRAINED = {
    LARGE: MODELS[LARGE],
    NARROW: replace(MODELS[SMALL], input_size=BINS),
    GRU: ModelSpec(cell="gru", input_size=BINS, hidden_size=256, output_size=BINS),
    LSTM: ModelSpec(cell="lstm", input_size=BINS, hidden_size=256, output_size=BINS),
}
TRAINED_TITLES = {
    name: f"{spec.cell} H={spec.hidden_size} O={spec.output_size} D={spec.input_size}" for name, spec in TRAINED.items()
}


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """One recording. frames: [T, D] float32. labels: [T] int32, of the model's outputs."""

    frames: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)


def labelled(recordings: Sequence[np.ndarray], spec: ModelSpec) -> list[Labelled]:
    """Returns the same labels on every call; of a frame's numbers as many as the network takes."""
    generator = np.random.default_rng(2)
    return [
        Labelled(
            np.ascontiguousarray(frames[:, : spec.input_size]),
            generator.integers(0, spec.output_size, len(frames), "i4"),
        )
        for frames in recordings
    ]
