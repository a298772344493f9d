"""The examples are programs, not a package: their folder becomes importable here."""

import pathlib
import sys
import wave

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples"))


@pytest.fixture
def folder_of_digits(tmp_path):
    """A folder of the digits that ship with the project, each a WAV file of its own, at several sample rates."""
    from features import HOP
    from recordings import DIGITS, shipped
    from resampling import resample

    folder = tmp_path / "data"
    folder.mkdir()
    for recording in shipped().recordings:
        borders = [0, *(np.flatnonzero(np.diff(recording.labels)) + 1), len(recording.labels)]
        for word, first, last in zip(recording.words, borders[1:], borders[2:], strict=False):
            for index, rate in enumerate([8_000, 22_050, 44_100]) if word in DIGITS else ():
                samples = resample(recording.samples[first * HOP : last * HOP], recording.rate, rate)
                name = f"{DIGITS.index(word)}_{recording.speaker}_{index if recording.held_out else index + 5}.wav"
                with wave.open(str(folder / name), "wb") as file:
                    file.setparams((1, 2, rate, 0, "NONE", ""))
                    file.writeframes((samples * 32767).astype("<i2").tobytes())
    return folder


@pytest.fixture
def read(tmp_path):
    """Reads bytes as a file called sound.wav: its samples and their rate."""
    from wav_files import read_wav

    def write_and_read(data):
        (tmp_path / "sound.wav").write_bytes(data)
        return read_wav(tmp_path / "sound.wav")

    return write_and_read
