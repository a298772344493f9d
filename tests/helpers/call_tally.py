"""What became of the calls of simulated callers in a while, as numbers and as a line of text."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, repr=False)
class Tally:
    """What became of the calls of a while.

    offered: first tries that came in it; those refused may have come again. good, late, dropped, refused, left, failed:
    calls that ended in it. kept: the part of those offered in it that was answered in time, whenever that was. steps,
    wasted: steps computed for those that ended, and the part of them that no answer was made of. delays: of the good
    ones.
    """

    seconds: float
    offered: int
    good: int
    late: int
    dropped: int
    refused: int
    left: int
    failed: int
    kept: float
    steps: int
    wasted: float
    delays: np.ndarray

    @property
    def goodput(self):
        """Calls a second that were answered in time."""
        return self.good / self.seconds

    def delay(self, percent):
        """Returns a percentile of the delays of the good ones, in seconds."""
        return float(np.percentile(self.delays, percent)) if len(self.delays) else 0.0

    def __repr__(self):
        return (
            f"offered {self.offered / self.seconds:7.1f}/s good {self.goodput:6.1f}/s kept {self.kept:4.2f} "
            f"refused {self.refused:5d} dropped {self.dropped:5d} late {self.late:4d} left {self.left:4d} "
            f"wasted {self.wasted:5.1%} p50 {1e3 * self.delay(50):5.0f} ms p99 {1e3 * self.delay(99):5.0f} ms"
        )


def tally(callers, start, end):
    """Returns the tally of callers' calls from `start` to `end`; a run should go on after it until all have ended."""
    calls = [call for caller in callers for call in caller.calls]
    first = [call for call in calls if start <= call.arrived < end and not call.again]
    ended = [call for call in calls if call.outcome is not None and start <= call.ended < end]
    count = dict.fromkeys(("good", "late", "dropped", "refused", "left", "failed"), 0)
    for call in ended:
        count[call.outcome] += 1
    steps = sum(call.computed for call in ended)
    wasted = sum(call.computed for call in ended if call.outcome != "good")
    delays = np.array([call.ended - call.arrived for call in ended if call.outcome == "good"])
    kept = sum(call.outcome == "good" for call in first) / max(len(first), 1)
    return Tally(end - start, len(first), **count, kept=kept, steps=steps, wasted=wasted / max(steps, 1), delays=delays)
