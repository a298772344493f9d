"""What overload is made of: recordings of spoken digits for the large network, calls of 450 steps for the small one."""

import numpy as np

from benchmarks.loads.workload import LARGE, SMALL, TITLES, chunks, synthetic

STEPS = 450  # of a call of the small network
FACTORS = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0)
"""How much is offered, of the closed loop's peak or of the streams that are on time."""

CALLS = {LARGE: f"{TITLES[LARGE]}", SMALL: f"{TITLES[SMALL]}, {STEPS} steps"}


def recordings_of(model: str) -> list[np.ndarray]:
    """Returns what is sent to a network whole, [T, 160] float32 each."""
    return chunks(synthetic(), STEPS) if model == SMALL else synthetic()
