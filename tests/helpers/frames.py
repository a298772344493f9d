"""Frames that a test sends: noise, and how it is cut into chunks."""

import itertools

import numpy as np
import numpy.typing as npt


def noise(steps: int, width: int = 5, seed: int = 0, dtype: str = "f8") -> npt.NDArray:
    """[steps, width] of standard normal noise."""
    return np.random.default_rng(seed).standard_normal((steps, width)).astype(dtype)


def cut(frames, sizes):
    """Cuts frames into chunks of these sizes, the last taking what is left."""
    ends = [*itertools.takewhile(lambda end: end < len(frames), itertools.accumulate(sizes)), len(frames)]
    return [frames[start:end] for start, end in itertools.pairwise([0, *ends])]
