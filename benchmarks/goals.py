"""What each row is held against: the least that Seqloom is to do, as a ratio to what stands beside it."""

from workload import BF16, LARGE, SMALL

ALONE, TRITON, ECHO = "the network alone", "Triton", "the echo"
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
}
"""By part, model and what stands beside."""
