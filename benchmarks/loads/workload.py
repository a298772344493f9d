"""What is measured with: two networks, and recordings of unequal lengths as frames of 160 samples (10 ms at 16 kHz)."""

import itertools
import pathlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from seqloom import ModelSpec

FRAME = 160  # samples
RATE = 16_000  # samples a second

LARGE, SMALL = "large", "small"
MODELS = {
    LARGE: ModelSpec(cell="elman", input_size=FRAME, hidden_size=1000, output_size=6000),
    SMALL: ModelSpec(cell="elman", input_size=FRAME, hidden_size=64, output_size=40),
}
BF16, INT8 = "large-bf16", "large-int8"
SERVED = MODELS | {
    BF16: replace(MODELS[LARGE], precision="bf16"),
    INT8: replace(MODELS[LARGE], precision="int8"),
}
"""The networks that callers and live streams are measured with."""

SIZES = {LARGE: (LARGE, BF16), SMALL: (SMALL,)}
"""Which of them stand beside the same peers, which run in float32."""

TITLES = {
    name: f"H={spec.hidden_size} O={spec.output_size}" + (f" {spec.precision}" if spec.precision != "full" else "")
    for name, spec in SERVED.items()
}

_SHORTEST, _LONGEST = 14, 130  # frames, as spoken digits have
_MEDIAN, _SPREAD = 40, 0.35


def synthetic(count: int = 512) -> list[np.ndarray]:
    """Returns the same recordings on every call, [frames, 160] float32 each, with the lengths of spoken digits."""
    generator = np.random.default_rng(0)
    lengths = np.exp(generator.normal(np.log(_MEDIAN), _SPREAD, count)).astype(int).clip(_SHORTEST, _LONGEST)
    return [generator.normal(0, 0.1, (length, FRAME)).astype("f4") for length in lengths]


def from_folder(path: pathlib.Path, count: int = 512) -> list[np.ndarray]:
    """Returns up to `count` WAV files of a folder, in an order that is always the same, at 16 kHz.

    Each is [frames, 160] float32. Raises ValueError where there are none, or one is no WAV file.
    """
    # here, since a peer's load needs the rest in an environment without what they import
    from recordings import read_wav
    from resampling import resample

    files = sorted(path.glob("*.wav"))
    if not files:
        raise ValueError(f"{path} holds no WAV files")
    found = []
    for index in np.random.default_rng(1).permutation(len(files))[:count]:
        samples = resample(*read_wav(files[index]), RATE)
        found.append(samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME))
    found = [frames for frames in found if len(frames)]
    if not found:
        raise ValueError(f"{path} holds no WAV file of {FRAME} samples or more at {RATE} Hz")
    return found


def chunks(recordings: list[np.ndarray], size: int) -> list[np.ndarray]:
    """Returns the recordings, one after the other, as chunks [size, 160] of a live stream."""
    audio = np.concatenate(recordings)
    return list(audio[: len(audio) // size * size].reshape(-1, size, FRAME))


def batches(recordings: list[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Yields recordings `size` at a time, round and round."""
    following = itertools.cycle(recordings)
    while True:
        yield list(itertools.islice(following, size))
