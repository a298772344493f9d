"""Words out of per-frame class probabilities: runs of the likeliest class, the short ones left out."""

import itertools
from collections.abc import Sequence

import numpy as np
from recordings import SILENCE

SHORTEST = 9
"""Frames that a word must last: 90 ms."""


def recognise(probs: np.ndarray, classes: Sequence[str]) -> tuple[str, ...]:
    """Returns the words of a recording. probs: [frames, classes].

    With the class "silence" among the classes words may follow one another; without it the recording is one word, the
    class that is likeliest on average.
    """
    if SILENCE not in classes:
        return (classes[int(probs.mean(axis=0).argmax())],)
    likeliest = (classes[label] for label in probs.argmax(axis=1))
    runs = ((label, len(list(frames))) for label, frames in itertools.groupby(likeliest))
    # a word that another class interrupts for a moment is still one word
    lasting = itertools.groupby(label for label, length in runs if length >= SHORTEST)
    return tuple(label for label, _ in lasting if label != SILENCE)


def edits(said: Sequence[str], heard: Sequence[str]) -> int:
    """Returns the fewest words to replace, add or take away that make `heard` out of `said` (Levenshtein)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(before + (word != other), row[j] + 1, row[j - 1] + 1)
    return row[-1]
