"""Trains the demo's model, examples/models/digits, on the training voices of examples/speech; tests it on the others.

Each voice is heard in many variants: at other pitches and paces, its words in other orders, in quiet and noisy rooms.
"""

import itertools
import pathlib
import sys

import numpy as np
import torch

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

from features import BINS, RATE, log_mel  # noqa: E402
from recognition import edits, recognise  # noqa: E402
from recordings import SILENCE, Recording, shipped  # noqa: E402
from resampling import resample  # noqa: E402
from seqloom_server.nn import storage  # noqa: E402
from seqloom_server.nn.network import Network  # noqa: E402
from training import class_probabilities, train  # noqa: E402

MODEL = EXAMPLES / "models" / "digits"
VARIANTS = 150
BEND = 0.3  # bins
COLOUR = 1.0  # nats
SHORTEST_SILENCE, LONGEST_SILENCE = 5, 40  # frames


def main() -> None:
    torch.set_num_threads(2)
    corpus, random = shipped(), np.random.default_rng(0)
    silence = corpus.classes.index(SILENCE)
    voices = [list(group) for _, group in itertools.groupby(corpus.training, lambda recording: recording.speaker)]
    varied = [vary(voice, silence, random) for _ in range(VARIANTS) for voice in voices]
    network = train(
        [frames for frames, _ in varied],
        [labels for _, labels in varied],
        len(corpus.classes),
        hidden_size=80,
        epochs=4,
        learning_rate=1e-2,
        noise=0.2,
        dropout=0.3,
        report=lambda epoch, loss: print(f"epoch {epoch + 1}: loss {loss:.3f} a frame"),
    )
    storage.save(MODEL, network)
    for name, recordings in (("training voices", corpus.training), ("voices never heard", corpus.held_out)):
        frames_right, words_right = test(network, recordings, corpus.classes)
        print(f"{name}: {frames_right:.1%} of the frames and {words_right:.1%} of the words right")


def vary(voice: list[Recording], silence: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns all that a voice says, as another might have said it: features [frames, 40], labels [frames]."""
    # pitch and formants move together, as from a large speaker to a small one
    rate = round(RATE * random.uniform(0.85, 1.18))
    samples = resample(np.concatenate([recording.samples for recording in voice]), rate, RATE)
    samples = samples * 10 ** random.uniform(-0.6, 0.2) + random.normal(
        0, 10 ** random.uniform(-4.5, -2.3), len(samples)
    )
    # each formant moves a little by itself, and speakers and rooms colour the spectrum
    waves = np.sin(np.pi * np.outer(np.arange(1, 5), np.linspace(0, 1, BINS)))
    frames = between(log_mel(samples).T, np.arange(BINS) + random.normal(0, BEND, 4) @ waves).T
    colour = random.normal(0, COLOUR, 4) @ waves + random.normal(0, COLOUR) * np.linspace(-1, 1, BINS)
    frames += colour.astype(np.float32)
    # the pace moves by itself: the frames are read at other moments
    moments = np.arange(0, len(frames) - 1, random.uniform(0.75, 1.3))
    frames = between(frames, moments)
    labels = np.concatenate([recording.labels for recording in voice])
    labels = labels[np.minimum((moments + 0.5) * rate / RATE, len(labels) - 1).astype(int)]
    return (frames, labels) if random.random() < 0.3 else shuffle(frames, labels, silence, random)


def between(rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Returns the rows at these positions, which lie between them: [n, D] float32."""
    positions = np.clip(positions, 0, len(rows) - 1.001)
    before, part = positions.astype(int), (positions % 1)[:, None]
    return (rows[before] * (1 - part) + rows[before + 1] * part).astype(np.float32)


def shuffle(
    frames: np.ndarray, labels: np.ndarray, silence: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the words in another order, a pause before some of them."""
    words = np.split(np.arange(len(labels)), np.flatnonzero(np.diff(labels)) + 1)
    pauses = np.flatnonzero(labels == silence)
    order = []
    for i in random.permutation([i for i, word in enumerate(words) if labels[word[0]] != silence]):
        if random.random() < 0.4:
            order.append(random.choice(pauses, random.integers(3, 40)))
        order.append(words[i])
    order.append(random.choice(pauses, random.integers(3, 40)))
    rows = np.concatenate(order)
    return frames[rows], labels[rows]


def test(network: Network, recordings: list[Recording], classes: tuple[str, ...]) -> tuple[float, float]:
    """Returns the share of frames and of words that the network has right."""
    frames = words = errors = right = 0
    for recording in recordings:
        probs = class_probabilities(network, log_mel(recording.samples, recording.rate))
        right += int((probs.argmax(axis=1) == recording.labels).sum())
        frames += len(probs)
        errors += edits(recording.words, recognise(probs, classes))
        words += len(recording.words)
    return right / frames, 1 - errors / words


if __name__ == "__main__":
    main()
