"""The shipped speech is small, whole and rightly labelled; what a folder of WAV files leaves out is said."""

import itertools
import wave

import numpy as np
import pytest
from features import HOP, RATE
from recordings import DIGITS, GREETING, SPEECH, folder, shipped


@pytest.fixture(scope="module")
def corpus():
    return shipped()


def write(path, data, channels=1, width=2, rate=8_000):
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(data)


def test_two_megabytes_at_most_are_shipped():
    assert sum(file.stat().st_size for file in SPEECH.rglob("*")) < 2_000_000


def test_every_recording_is_16_khz_and_has_a_label_for_each_10_ms(corpus):
    for recording in corpus.recordings:
        assert recording.rate == RATE
        assert len(recording.samples) == HOP * len(recording.labels)


def test_no_file_is_without_labels(corpus):
    assert {recording.name for recording in corpus.recordings} == {file.stem for file in SPEECH.rglob("*.wav")}


def test_every_voice_says_every_word_and_is_either_trained_on_or_held_out(corpus):
    for speaker in {recording.speaker for recording in corpus.recordings}:
        own = [recording for recording in corpus.recordings if recording.speaker == speaker]
        assert sorted(itertools.chain(*(one.words for one in own))) == sorted((*DIGITS, *GREETING))
        assert len({one.held_out for one in own}) == 1
    assert {recording.speaker for recording in corpus.held_out} == {"m7", "m3", "f2", "steph"}


def test_silence_is_where_the_labels_say(corpus):
    for recording in corpus.recordings:
        energy = np.square(recording.samples.reshape(-1, HOP)).mean(axis=1)
        spoken = np.flatnonzero(recording.labels)
        # the frame before the first word ends with up to half of the word's first frame, and an echo follows the last
        before, within = energy[: spoken[0] - 1], energy[spoken[0] : spoken[-1] + 1]
        assert before.max() < 1e-5, recording.name
        assert energy[spoken[-1] + 8 :].max() < 1e-4, recording.name
        assert within[:3].max() > 1e-5, recording.name
        assert within[-3:].max() > 1e-4, recording.name


def test_the_greeting_is_about_a_second_long(corpus):
    greetings = [one for one in corpus.recordings if one.words == GREETING]
    assert len(greetings) == 13
    assert all(90 <= len(one.labels) <= 130 for one in greetings)


def test_a_folder_s_names_tell_digit_speaker_and_split(tmp_path):
    for name in ("7_ann_0.wav", "7_ann_5.wav", "3_bob_12.wav", "notes.txt", "seven.wav"):
        write(tmp_path / name, bytes(2 * 850))
    corpus = folder(tmp_path)
    assert corpus.classes == ("3", "7")
    assert [(one.name, one.speaker, one.words, one.held_out) for one in corpus.recordings] == [
        ("3_bob_12", "bob", ("3",), False),
        ("7_ann_0", "ann", ("7",), True),
        ("7_ann_5", "ann", ("7",), False),
    ]
    assert [len(one.labels) for one in corpus.recordings] == [11, 11, 11]  # 106.25 ms


def test_what_a_folder_leaves_out_is_said_in_one_line(tmp_path, capsys):
    for name in ("7_ann_0.wav", "7_ann_5.wav", "notes.txt"):
        write(tmp_path / name, bytes(2 * 850))
    folder(tmp_path)
    assert capsys.readouterr().err == ""
    for name in ("seven.wav", "7-ann-1.WAV", "8_ann_6.wav", *(f"7_ann_{i}.wav" for i in (1, 2, 3, 6))):
        write(tmp_path / name, b"" if "_" in name else bytes(2 * 850))
    corpus = folder(tmp_path)
    assert [one.name for one in corpus.recordings] == ["7_ann_0", "7_ann_5"]
    assert corpus.classes == ("7",)
    assert capsys.readouterr().err == (
        f"{tmp_path}: left out 2 WAV files of another name (7-ann-1.WAV, seven.wav) and "
        "5 WAV files without samples (7_ann_1.wav, 7_ann_2.wav, 7_ann_3.wav, ...)\n"
    )


def test_why_a_folder_holds_nothing_is_said(tmp_path):
    write(tmp_path / "7_ann_0.wav", b"")
    write(tmp_path / "seven.wav", bytes(2 * 850))
    message = r"0 recordings .*; left out 1 WAV file of another name \(seven\.wav\) and 1 WAV file without samples \("
    with pytest.raises(ValueError, match=message):
        folder(tmp_path)


def test_a_folder_with_nothing_to_test_is_refused(tmp_path):
    write(tmp_path / "7_ann_5.wav", bytes(1_700))
    with pytest.raises(ValueError, match=r"1 recordings to train on and 0 to test: expected WAV files named"):
        folder(tmp_path)


def test_a_file_that_is_no_wav_file_is_named(tmp_path):
    (tmp_path / "7_ann_5.wav").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"7_ann_5\.wav is no WAV file"):
        folder(tmp_path)
