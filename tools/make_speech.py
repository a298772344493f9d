"""Makes examples/speech again: Mandarin digits and the greeting 早上好, spoken by espeak-ng, labelled frame by frame.

Needs espeak-ng (Debian: espeak-ng). Every voice says the greeting, and in three more
recordings each of the ten digits once. The labels are exact: they come from the synthesis, not from listening.
"""

import json
import pathlib
import shutil
import sys
import wave

import numpy as np
from espeak import Espeak, Spoken

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

from features import HOP, RATE  # noqa: E402
from resampling import resample  # noqa: E402

FOLDER = EXAMPLES / "speech"
LEAD, TAIL = 0.10, 0.12  # seconds of silence around the speech
PEAK = 0.5
ROOM = 0.0005  # the standard deviation of the noise that a room has, without which silence would be all zeros

DIGITS = ("ling2", "yi1", "er4", "san1", "si4", "wu3", "liu4", "qi1", "ba1", "jiu3")
GREETING = ("zao3", "shang5", "hao3")
# Voice, words a minute, pitch. The model never hears those in "test".
VOICES = {
    "train": [
        ("m1", 175, 45),
        ("m8", 190, 65),
        ("m4", 160, 35),
        ("m6", 185, 60),
        ("f1", 180, 45),
        ("f3", 165, 55),
        ("f5", 190, 40),
        ("linda", 175, 30),
        ("adam", 170, 60),
    ],
    "test": [("m7", 180, 50), ("m3", 170, 55), ("f2", 165, 50), ("steph", 185, 45)],
}


def main() -> None:
    espeak, random = Espeak(), np.random.default_rng(0)
    shutil.rmtree(FOLDER / "audio", ignore_errors=True)
    (FOLDER / "audio").mkdir(parents=True)
    entries = []
    for split, voices in VOICES.items():
        for variant, speed, pitch in voices:
            order = random.permutation(len(DIGITS))
            for syllables in (GREETING, *([DIGITS[i] for i in part] for part in np.split(order, [4, 7]))):
                spoken = espeak.say(" ".join(syllables), f"cmn-latn-pinyin+{variant}", speed, pitch)
                samples, segments = label(spoken, [syllable[:-1] for syllable in syllables], random)
                name = f"{variant}-{'-'.join(syllable[:-1] for syllable in syllables)}.wav"
                write(FOLDER / "audio" / name, samples)
                voice = {"voice": variant, "words_per_minute": speed, "pitch": pitch, "split": split}
                entries.append({"file": f"audio/{name}", **voice, "segments": segments})
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (FOLDER / "manifest.json").write_text(f"[\n{lines}\n]\n")


def label(
    spoken: Spoken, words: list[str], random: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, int, str]]]:
    """Returns the recording, int16 [160 frames], and its segments (first frame, frame after the last, label).

    A frame has the label of its middle. A word that follows another without a pause begins where that one ends, so
    that the closure of its first consonant is its own.
    """
    lead = round(LEAD * RATE)
    borders = []
    for before, phonemes in zip([None, *spoken.words], spoken.words, strict=False):
        joined = before is not None and before[-1].name == "_|"
        borders.append(before[-1].start if joined else phonemes[0].start)
    end = next(phoneme.start for phoneme in reversed(spoken.words[-1]) if phoneme.name == "_|")
    if len(borders) != len(words):
        raise ValueError(f"espeak-ng spoke {len(borders)} words for {words}")

    starts = [frame(lead + border * RATE / spoken.rate) for border in (*borders, end)]
    speech = resample(spoken.samples.astype(np.float32) / 32768, spoken.rate, RATE)
    count = -(-round((LEAD + TAIL) * RATE + len(speech)) // HOP)
    samples = random.normal(0, ROOM, count * HOP)
    samples[lead : lead + len(speech)] += speech * (PEAK / np.abs(speech).max())
    segments = [(0, starts[0], "silence")]
    segments += [(first, last, word) for first, last, word in zip(starts, starts[1:], words, strict=False)]
    segments.append((starts[-1], count, "silence"))
    return np.round(samples * 32767).astype("<i2"), segments


def frame(sample: float) -> int:
    """The first frame whose middle is not before `sample`."""
    return int(np.ceil((sample - HOP / 2) / HOP))


def write(path: pathlib.Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(samples.tobytes())


if __name__ == "__main__":
    main()
