"""Draws the demo's picture: the waveform, and below it the probability of every class at every step."""

import itertools
import pathlib
from collections.abc import Sequence

import numpy as np
from callers import FRAME, Said
from matplotlib.figure import Figure


def draw(path: pathlib.Path, said: Sequence[Said], classes: Sequence[str], title: str) -> None:
    """Writes a PNG of one caller's recordings, one after the other. Words are placed according to the labels."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2])
    begin = 0.0
    for one in said:
        recording = one.recording
        seconds = begin + np.arange(len(recording.samples)) / recording.rate
        above.plot(seconds, recording.samples, linewidth=0.4, color="#1f4e79")
        borders = [0, *(np.flatnonzero(np.diff(recording.labels)) + 1), len(recording.labels)]
        for first, last in itertools.pairwise(borders):
            word = classes[recording.labels[first]]
            if word in recording.words:
                middle = begin + FRAME * (first + last) / 2
                above.text(middle, 1.02, word, transform=above.get_xaxis_transform(), ha="center", fontsize=9)
        begin += FRAME * len(recording.labels)
        for axis in (above, below):
            axis.axvline(begin, color="0.6", linewidth=0.6, linestyle="--")
    probs = np.concatenate([one.probs for one in said])
    image = below.imshow(
        probs.T, aspect="auto", origin="upper", cmap="magma", vmin=0, vmax=1, interpolation="nearest",
        extent=(0, FRAME * len(probs), len(classes) - 0.5, -0.5),
    )  # fmt: skip
    above.set(ylabel="waveform", xlim=(0, FRAME * len(probs)))
    above.set_title(title, pad=20)
    below.set(xlabel="seconds", ylabel="class", yticks=range(len(classes)), yticklabels=list(classes))
    figure.colorbar(image, ax=below, label="probability", pad=0.01)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
