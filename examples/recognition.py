"""Finds words in per-frame class probabilities: the most probable sequence of classes, with a cost for every change."""

import itertools
from collections.abc import Sequence

import numpy as np
from recordings import SILENCE

CHANGE_COST = 8.0
"""In nats: prevents words that are more probable for a moment only, such as one with the same first consonant."""


def recognise(probs: np.ndarray, classes: Sequence[str]) -> tuple[str, ...]:
    """Returns the words of a recording. probs: [frames, classes].

    With the class "silence" a recording may have several words; without it the recording is one word, the most probable
    class on average.
    """
    if SILENCE not in classes:
        return (classes[int(probs.mean(axis=0).argmax())],)
    runs = (classes[label] for label, _ in itertools.groupby(likeliest_path(probs)))
    return tuple(label for label in runs if label != SILENCE)


def likeliest_path(probs: np.ndarray) -> list[int]:
    """Returns a class for each frame, [frames]: the most probable path, minus CHANGE_COST a change (Viterbi)."""
    score, came_from = np.zeros(probs.shape[1]), []
    for log_probs in np.log(np.maximum(probs, 1e-6)):
        best = int(score.argmax())
        stays = score >= score[best] - CHANGE_COST
        came_from.append(np.where(stays, np.arange(len(score)), best))
        score = np.maximum(score, score[best] - CHANGE_COST) + log_probs
    path = [int(score.argmax())]
    for previous in reversed(came_from[1:]):
        path.append(int(previous[path[-1]]))
    return path[::-1]


def edits(said: Sequence[str], heard: Sequence[str]) -> int:
    """Returns the smallest number of words to replace, insert or delete to turn `said` into `heard` (Levenshtein)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(before + (word != other), row[j] + 1, row[j - 1] + 1)
    return row[-1]
