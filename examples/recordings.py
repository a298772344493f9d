"""Recordings with what is said in them: those that ship with the project, or a folder of WAV files."""

import json
import pathlib
import re
import wave
from dataclasses import dataclass

import numpy as np
from features import HOP, RATE

SPEECH = pathlib.Path(__file__).resolve().parent / "speech"
SILENCE = "silence"
DIGITS = ("ling", "yi", "er", "san", "si", "wu", "liu", "qi", "ba", "jiu")
GREETING = ("zao", "shang", "hao")

_NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>[^_]+)_(?P<index>\d+)\.wav", re.IGNORECASE)
_HELD_OUT = range(5)  # the Free Spoken Digit Dataset's own test split, by index


@dataclass(frozen=True, eq=False)
class Recording:
    """What somebody said, and where in it.

    samples: [n] float32 within -1 to 1, at `rate` Hz. labels: [frames] int64, the class of each 10 ms. held_out: kept
    from training.
    """

    name: str
    speaker: str
    held_out: bool
    rate: int
    samples: np.ndarray
    words: tuple[str, ...]
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Corpus:
    """Recordings and the classes that their labels count. Without the class "silence" each recording is one word."""

    classes: tuple[str, ...]
    recordings: list[Recording]

    @property
    def training(self) -> list[Recording]:
        return [recording for recording in self.recordings if not recording.held_out]

    @property
    def held_out(self) -> list[Recording]:
        return [recording for recording in self.recordings if recording.held_out]


def shipped() -> Corpus:
    """Returns the project's own recordings: Mandarin digits and 早上好, with exact labels. Held out: whole voices."""
    classes = (SILENCE, *DIGITS, *GREETING)
    recordings = []
    for entry in json.loads((SPEECH / "manifest.json").read_text()):
        samples, rate = read_wav(SPEECH / entry["file"])
        segments = entry["segments"]
        labels = np.concatenate([np.full(end - start, classes.index(label)) for start, end, label in segments])
        words = tuple(label for _, _, label in segments if label != SILENCE)
        name = pathlib.Path(entry["file"]).stem
        recordings.append(Recording(name, entry["voice"], entry["split"] == "test", rate, samples, words, labels))
    return Corpus(classes, recordings)


def folder(path: pathlib.Path) -> Corpus:
    """Returns the recordings of a folder of WAV files named {digit}_{speaker}_{index}.wav, one spoken digit each.

    Files of other names are left out. Index 0 to 4 of each digit and speaker is held out. Raises ValueError where that
    leaves nothing to train on or nothing to test, and for a file that is no WAV file.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: there is no such folder")
    names = {file: match for file in sorted(path.glob("*")) if (match := _NAME.fullmatch(file.name))}
    classes = tuple(sorted({match["digit"] for match in names.values()}))
    recordings = []
    for file, match in names.items():
        samples, rate = read_wav(file)
        frames = -(-len(samples) * RATE // (rate * HOP))
        labels = np.full(frames, classes.index(match["digit"]))
        held_out = int(match["index"]) in _HELD_OUT
        recordings.append(Recording(file.stem, match["speaker"], held_out, rate, samples, (match["digit"],), labels))
    corpus = Corpus(classes, [recording for recording in recordings if len(recording.samples)])
    if not corpus.training or not corpus.held_out:
        raise ValueError(
            f"{path} holds {len(corpus.training)} recordings to train on and {len(corpus.held_out)} to test: expected "
            "WAV files named {digit}_{speaker}_{index}.wav, those to train on with an index above 4"
        )
    return corpus


def read_wav(path: pathlib.Path) -> tuple[np.ndarray, int]:
    """Returns a WAV file's samples, [n] float32 within -1 to 1 with its channels averaged, and its rate in Hz.

    Raises ValueError for a file that is no WAV file of whole numbers.
    """
    try:
        with wave.open(str(path)) as file:
            channels, width, rate, *_ = file.getparams()
            data = np.frombuffer(file.readframes(file.getnframes()), np.uint8)
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path.name} is no WAV file of 8 to 32-bit samples: {error}") from error
    if width == 1:
        samples = (data.astype(np.float32) - 128) / 128
    else:
        wide = np.zeros((len(data) // width, 4), np.uint8)
        wide[:, 4 - width :] = data[: len(wide) * width].reshape(-1, width)
        samples = wide.view("<i4")[:, 0].astype(np.float32) / 2**31
    return samples.reshape(-1, channels).mean(axis=1), rate
