"""Loads labelled recordings: those that ship with the project, or a folder of WAV files."""

import json
import pathlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from features import HOP, RATE
from wav_files import read_wav

SPEECH = pathlib.Path(__file__).resolve().parent / "speech"
SILENCE = "silence"
DIGITS = ("ling", "yi", "er", "san", "si", "wu", "liu", "qi", "ba", "jiu")
GREETING = ("zao", "shang", "hao")

_NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>[^_]+)_(?P<index>\d+)\.wav", re.IGNORECASE)
_HELD_OUT = range(5)  # the Free Spoken Digit Dataset's own test split, by index
_SHOWN = 3  # names of files that are left out


@dataclass(frozen=True, eq=False)
class Recording:
    """A recording with the words in it and their positions.

    samples: [n] float32 within -1 to 1, at `rate` Hz. labels: [frames] int64, the class of each 10 ms. held_out: not
    used for training.
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
    """Recordings and the classes of their labels. Without the class "silence" each recording is one word."""

    classes: tuple[str, ...]
    recordings: list[Recording]

    @property
    def training(self) -> list[Recording]:
        return [recording for recording in self.recordings if not recording.held_out]

    @property
    def held_out(self) -> list[Recording]:
        return [recording for recording in self.recordings if recording.held_out]


def shipped() -> Corpus:
    """Returns the project's own recordings: Mandarin digits and 早上好, exactly labelled. Whole voices are held out."""
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

    WAV files with other names and recordings without samples are left out, with a line on stderr. Index 0 to 4 of
    each digit and speaker are held out. Raises ValueError if no recordings are left for training or for the test, and
    if a recording cannot be read.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: there is no such folder")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".wav")
    names = {file: match for file in files if (match := _NAME.fullmatch(file.name))}
    heard = {file: read_wav(file) for file in names}
    spoken = {file: match for file, match in names.items() if len(heard[file][0])}
    classes = tuple(sorted({match["digit"] for match in spoken.values()}))
    recordings = []
    for file, match in spoken.items():
        samples, rate = heard[file]
        frames = -(-len(samples) * RATE // (rate * HOP))
        labels = np.full(frames, classes.index(match["digit"]))
        held_out = int(match["index"]) in _HELD_OUT
        recordings.append(Recording(file.stem, match["speaker"], held_out, rate, samples, (match["digit"],), labels))
    corpus = Corpus(classes, recordings)
    others = _counted("of another name", [file for file in files if file not in names])
    empty = _counted("without samples", [file for file in names if file not in spoken])
    left_out = f"left out {' and '.join(filter(None, (others, empty)))}" if others or empty else ""
    if not corpus.training or not corpus.held_out:
        raise ValueError(
            f"{path} holds {len(corpus.training)} recordings to train on and {len(corpus.held_out)} to test: expected "
            "WAV files named {digit}_{speaker}_{index}.wav, those to train on with an index above 4"
            + (f"; {left_out}" if left_out else "")
        )
    if left_out:
        print(f"{path}: {left_out}", file=sys.stderr)
    return corpus


def _counted(what: str, files: Sequence[pathlib.Path]) -> str:
    """Returns the number of WAV files with the first names; "" if there are none."""
    names = [file.name for file in files[:_SHOWN]] + ["..."] * (len(files) > _SHOWN)
    return f"{len(files)} WAV file{'s' * (len(files) > 1)} {what} ({', '.join(names)})" if files else ""
