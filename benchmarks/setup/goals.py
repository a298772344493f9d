"""What each row is held against: the least that its ratio is to be, or the most where less is better."""

from benchmarks.loads.workload import BF16, LARGE, SMALL

ALONE, TRITON, ECHO = "the network alone", "Triton", "the echo"
AUTOGRAD, SUM, DENSE = "the autograd pass", "the sum's device time", "a dense one"
STEPS, FEWER, IDLE = "all steps computed", "the least cost of a frame with fewer streams", "its state and 20 kB"
"""What stands beside Seqloom."""

GOALS: dict[tuple[str, str, str], float] = {
    ("callers", LARGE, ALONE): 0.92,
    ("callers", LARGE, TRITON): 1.0,
    ("callers", BF16, TRITON): 1.8,
    ("callers", SMALL, TRITON): 1.2,
    ("connections", SMALL, ECHO): 0.7,
    ("streams", LARGE, TRITON): 1.1,
    ("streams", BF16, TRITON): 1.8,
    ("streams", SMALL, TRITON): 2.0,
    ("realtime", LARGE, TRITON): 1.4,
    ("realtime", BF16, TRITON): 2.5,
    ("realtime", SMALL, TRITON): 2.5,
    ("forward_backward", LARGE, AUTOGRAD): 0.85,
    # from here on less is better
    ("gradients", LARGE, SUM): 1.2,
    ("gradients", LARGE, DENSE): 1 / 8,
    ("growth", LARGE, FEWER): 1.2,  # never more, but for noise
    ("growth", SMALL, FEWER): 1.2,
    ("idle", SMALL, IDLE): 1.0,
}
"""By part, model and what stands beside."""

PADDING = {"cpu": 0.0, "cuda": 0.25}
"""The most of the computed steps that may be padding, by device."""
