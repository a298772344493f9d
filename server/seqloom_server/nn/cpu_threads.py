"""Keeps OpenMP to one thread of the process: the device's.

Each thread that computes in parallel has OpenMP make it a team of its own, which stays as long as the thread. As soon
as all teams together have more threads than there are processors, GNU's libgomp has every member sleep between two
calls instead of waiting awake for the next (gomp_throttled_spin_count in its env.c), in every team, also while the
others do nothing. A recurrent network makes a call each step: its steps took 1.3 times as long in float32 and 1.8 times
in bfloat16 (docs/performance.md; findings/torch_second_thread_slows_steps.sh).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

R = TypeVar("R")

CORES = torch.get_num_threads()  # torch's default, before it is set


def set_threads(count: int) -> None:
    """Sets how many threads compute for the calling one, now and later.

    At its first parallel call torch gives a thread the number that any thread of the process has set last, whatever
    this one has set before. So it is asked first.
    """
    torch.get_num_threads()
    torch.set_num_threads(count)


def compute_alone() -> None:
    """Has the calling thread compute without help, now and later. For every lasting thread but the device's."""
    set_threads(1)


def in_passing_thread(threads: int, function: Callable[[], R]) -> R:
    """Returns function(), run in a thread that ends at once, and its team with it. threads: of that team, at least 1.

    Raises what the function raises.
    """
    with ThreadPoolExecutor(1, "passing", initializer=set_threads, initargs=(threads,)) as pool:
        return pool.submit(function).result()
