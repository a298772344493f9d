"""What each row is held against: the least that its ratio is to be, or the most where less is better."""

from benchmarks.loads.training_workload import NARROW
from benchmarks.loads.workload import BF16, INT8, LARGE, SMALL

ALONE, TRITON, ECHO = "the network alone", "Triton", "the echo"
AUTOGRAD, SUM, DENSE = "the autograd pass", "the sum's device time", "a dense one"
STEPS, FEWER, IDLE = "all steps computed", "the least cost of a frame with fewer streams", "its state and 20 kB"
PRODUCTS = "its bare products, by the fastest library"
"""What stands beside Seqloom."""

GROUP_P99_MS = 20.0
"""The 99th percentile of a stream group's delays in real time stays below it."""
ONE_AFTER_OTHER, SINGLE = "the echo and the network alone, one after the other", "as many single streams"
ON_TIME = f"{GROUP_P99_MS:g} ms at the 99th percentile"

GOALS: dict[tuple[str, str, str], float] = {
    ("callers", LARGE, ALONE): 0.95,
    ("callers", LARGE, TRITON): 1.15,
    ("callers", BF16, TRITON): 3.5,  # where the processor has AMX, as of streams
    ("callers", SMALL, TRITON): 1.5,
    ("connections", SMALL, ECHO): 0.7,
    ("streams", LARGE, TRITON): 1.3,
    ("streams", BF16, TRITON): 3.5,
    ("streams", SMALL, TRITON): 3.0,
    ("realtime", LARGE, TRITON): 1.5,
    ("realtime", BF16, TRITON): 2.8,
    ("realtime", SMALL, TRITON): 3.0,
    ("groups", SMALL, ONE_AFTER_OTHER): 0.7,
    ("forward_backward", LARGE, AUTOGRAD): 0.9,
    ("forward_backward", NARROW, AUTOGRAD): 0.4,
    # from here on less is better
    ("groups", SMALL, ON_TIME): 1.0,
    ("gradients", LARGE, SUM): 1.2,
    ("gradients", LARGE, DENSE): 1 / 8,
    ("growth", LARGE, FEWER): 1.2,  # never more, but for noise
    ("growth", SMALL, FEWER): 1.2,
    ("idle", SMALL, IDLE): 1.0,
}
"""By part, model and what stands beside."""

CEILING = {LARGE: 1.15, BF16: 1.5, INT8: 2.0}
"""The most that a frame's device time may be beside the bare products of its slice, by model."""

PADDING = {"cpu": 0.0, "cuda": 0.25}
"""The most of the computed steps that may be padding, by device."""

PEAK, OFFERED = "the peak", "what is offered"
GOODPUT = {PEAK: 0.9, OFFERED: 0.95}
"""Under overload: the least share that is answered in time, of the peak where as much or more is offered, else of what
is offered."""
FROM = 0.8
"""The least that is offered, of the peak, where the shares above are promised."""
WASTED = 0.05
"""The most of the steps computed that may be for answers which nobody got."""
SLOWED = 2.0
"""The most by which the p99 of live streams that were admitted may grow, beside that at FROM of their capacity."""
ADMITTED = 0.9
"""The least of the streams that are on time that are admitted where more come."""
REFUSED_MS = 20.0
"""The p99 of refusals of the large network's calls, at the caller, stays below it."""
