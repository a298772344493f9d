"""A scheduler over a device in simulated time, whose speed is known."""

import numpy as np
from seqloom_server.engine.core.limits import SchedulerLimits
from seqloom_server.engine.core.sequence import Chunk, Op, OutputSpec, Sequence
from seqloom_server.engine.core.slice_cost import SliceCost
from seqloom_server.engine.core.state_slots import SlotPool
from seqloom_server.engine.scheduling.scheduler import Scheduler


class KnownWeights:
    """Weights as the scheduler sees them, of a cost that is known: seconds a step and a cell."""

    def __init__(self, model="m", *, per_slice=0.0, per_step=1e-3, per_cell=1e-4, max_cells=1 << 20, whole_only=False):
        self.model, self.version, self.max_cells, self.whole_only = model, 1, max_cells, whole_only
        self.slots = SlotPool()
        self.cost = SliceCost(1.0, 1.0)
        self.cost.per_slice, self.cost.per_step, self.cost.per_cell = per_slice, per_step, per_cell


def make_sequence(weights, op=Op.INFER, sink=None, **more):
    return Sequence(op, weights, OutputSpec(), sink=sink, **more)


def make_chunk(steps, now=0.0, **more):
    return Chunk(np.zeros((steps, 1), "f4"), now, **more)


class Device:
    """A device of known speed: runs a scheduler's slices, one after the other, in simulated time."""

    def __init__(self, **limits):
        self.scheduler = Scheduler(SchedulerLimits(**limits))
        self.now = 0.0
        self.used = dict.fromkeys(Op, 0.0)

    def push(self, sequence, *sizes, last=False):
        chunks = [make_chunk(size, self.now) for size in sizes]
        chunks[-1].last = last
        self.scheduler.push(sequence, chunks, self.now)

    def open(self, weights, op, count=1, **more):
        if op is Op.STREAM:
            self.scheduler.live_sessions += count
        return [make_sequence(weights, op, **more) for _ in range(count)]

    def start(self):
        return self.scheduler.next_work(self.now)

    def finish(self, piece):
        seconds = piece.weights.cost.seconds(piece.steps, piece.cells)
        self.now += seconds
        for member in piece.members:
            self.used[member.sequence.op] += seconds * member.steps / max(piece.cells, 1)
        self.scheduler.complete(piece, seconds, self.now)
        return piece

    def run(self):
        return self.finish(self.start())


def sequences_of(piece):
    return [member.sequence for member in piece.members]
