"""Augments recordings of a few voices: other pitches, speeds, orders of words, and rooms."""

from collections.abc import Iterator, Sequence

import numpy as np
from features import BINS, RATE, log_mel
from recordings import Corpus, Recording
from resampling import resample

Example = tuple[np.ndarray, np.ndarray]
"""Features [frames, 40] and labels [frames]."""

_SPEAKERS = 14  # made of each voice
_BEND = 0.3  # bins
_COLOUR = 0.25  # of the features' deviation
_NOISE = 0.2  # likewise


def varied(corpus: Corpus, size: int, random: np.random.Generator) -> Iterator[list[Example]]:
    """Yields batches of `size` variants of the training voices of the shipped speech."""
    names = sorted({recording.speaker for recording in corpus.training})
    voices = [[recording for recording in corpus.training if recording.speaker == name] for name in names]
    pool = [speaker(voice, random) for voice in voices for _ in range(_SPEAKERS)]
    while True:
        yield [vary(*pool[i], random) for i in random.integers(0, len(pool), size)]


def repeated(recordings: Sequence[Recording], size: int, random: np.random.Generator) -> Iterator[list[Example]]:
    """Yields batches of recordings with some noise added; each recording once before any is repeated."""
    examples = [(log_mel(recording.samples, recording.rate), recording.labels) for recording in recordings]
    while True:
        order = random.permutation(len(examples))
        for begin in range(0, len(order), size):
            chosen = [examples[i] for i in order[begin : begin + size]]
            yield [(_noisy(frames, random), labels) for frames, labels in chosen]


def speaker(voice: Sequence[Recording], random: np.random.Generator) -> Example:
    """Returns all recordings of a voice, as by a larger or smaller speaker in a louder or noisier room."""
    # pitch and formants move together, in steps of 250 Hz of the rate
    rate = 250 * int(random.integers(round(0.85 * RATE / 250), round(1.18 * RATE / 250) + 1))
    samples = resample(np.concatenate([recording.samples for recording in voice]), rate, RATE)
    noise = random.normal(0, 10 ** random.uniform(-4.5, -2.3), len(samples))
    frames = log_mel(samples * 10 ** random.uniform(-0.6, 0.2) + noise)
    labels = np.concatenate([recording.labels for recording in voice])
    moments = (np.arange(len(frames)) + 0.5) * rate / RATE
    return frames, labels[np.minimum(moments, len(labels) - 1).astype(int)]


def vary(frames: np.ndarray, labels: np.ndarray, random: np.random.Generator) -> Example:
    """Returns a recording at another speed, usually with another order of words, and with another spectrum."""
    # each formant moves a little by itself, and speakers and rooms colour the spectrum
    waves = np.sin(np.pi * np.outer(np.arange(1, 5), np.linspace(0, 1, BINS)))
    frames = between(frames.T, np.arange(BINS) + random.normal(0, _BEND, 4) @ waves).T
    frames = frames + random.normal(0, _COLOUR, 4) @ waves + random.normal(0, _COLOUR) * np.linspace(-1, 1, BINS)
    # the pace moves by itself: the frames are read at other moments
    moments = np.arange(0, len(frames) - 1, random.uniform(0.75, 1.3))
    frames, labels = between(frames, moments), labels[(moments + 0.5).astype(int)]
    if random.random() > 0.3:
        frames, labels = shuffle(frames, labels, random)
    return _noisy(frames, random), labels


def between(rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Interpolates rows at fractional positions; returns [n, D] float32."""
    positions = np.clip(positions, 0, len(rows) - 1.001)
    before, part = positions.astype(int), (positions % 1)[:, None]
    return (rows[before] * (1 - part) + rows[before + 1] * part).astype(np.float32)


def shuffle(frames: np.ndarray, labels: np.ndarray, random: np.random.Generator) -> Example:
    """Returns the words in another order, with pauses before some of them. Silence is class 0."""
    words = np.split(np.arange(len(labels)), np.flatnonzero(np.diff(labels)) + 1)
    pauses = np.flatnonzero(labels == 0)
    order = []
    for i in random.permutation([i for i, word in enumerate(words) if labels[word[0]] != 0]):
        if random.random() < 0.4:
            order.append(random.choice(pauses, random.integers(3, 40)))
        order.append(words[i])
    order.append(random.choice(pauses, random.integers(3, 40)))
    rows = np.concatenate(order)
    return frames[rows], labels[rows]


def _noisy(frames: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return frames + _NOISE * random.standard_normal(frames.shape, np.float32)
