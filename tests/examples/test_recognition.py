"""Words out of probabilities: moments of doubt are no words, and the shipped model knows words of new voices."""

import numpy as np
import pytest
from features import log_mel
from helpers.in_process import class_probabilities
from recognition import edits, recognise
from recordings import SPEECH, shipped
from seqloom_server.nn.files import model_folder

MODELS = SPEECH.parent / "models"
CLASSES = ("silence", "yi", "er")


def frames(*runs, certain=0.9):
    """Probabilities in which class i is the likeliest for n frames, for each (i, n)."""
    rows = np.concatenate([np.full(n, i) for i, n in runs])
    return np.where(np.arange(len(CLASSES)) == rows[:, None], certain, (1 - certain) / 2)


def test_words_are_told_in_order_without_silence():
    assert recognise(frames((0, 10), (1, 20), (2, 20), (0, 5), (1, 20)), CLASSES) == ("yi", "er", "yi")


def test_a_moment_of_another_class_is_no_word_and_splits_none():
    assert recognise(frames((0, 10), (2, 2), (1, 12), (2, 2), (1, 12), (0, 10)), CLASSES) == ("yi",)


def test_a_long_doubt_is_no_word():
    doubt = np.concatenate([frames((0, 10)), frames((2, 12), certain=0.4), frames((1, 20), (0, 10))])
    assert recognise(doubt, CLASSES) == ("yi",)


def test_silence_alone_is_no_word():
    assert recognise(frames((0, 30)), CLASSES) == ()


def test_without_silence_a_recording_is_its_likeliest_word():
    assert recognise(frames((0, 9), (1, 12), (2, 10)), ("zero", "one", "two")) == ("one",)


@pytest.mark.parametrize(
    ("said", "heard", "expected"),
    [
        ("", "", 0),
        ("ab", "", 2),
        ("", "ab", 2),
        ("abc", "abc", 0),
        ("abc", "axc", 1),
        ("abc", "bc", 1),
        ("abc", "cab", 2),
    ],
)
def test_edits_are_the_fewest_that_there_are(said, heard, expected):
    assert edits(said, heard) == expected


def test_the_shipped_model_knows_the_words_of_voices_that_it_has_never_heard():
    corpus = shipped()
    network, _ = model_folder.load(MODELS / "digits")
    words = wrong = frames = right = 0
    for recording in corpus.held_out:
        probs = class_probabilities(network, log_mel(recording.samples, recording.rate))
        wrong += edits(recording.words, recognise(probs, corpus.classes))
        words += len(recording.words)
        right += int((probs.argmax(axis=1) == recording.labels).sum())
        frames += len(probs)
    assert wrong / words < 0.05
    assert right / frames > 0.9


def test_the_shipped_model_is_small():
    assert sum(file.stat().st_size for file in MODELS.rglob("*")) < 300_000
