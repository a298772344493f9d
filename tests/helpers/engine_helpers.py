"""What the engine tests share: a device in simulated time, a sink that collects, a whole engine, a gate before it."""

import asyncio
import contextlib
import threading
import time

import numpy as np
from seqloom_server.config import ServerConfig
from seqloom_server.engine.core.sequence import Chunk, Op, OutputSpec, Sequence
from seqloom_server.engine.core.slice_cost import SliceCost
from seqloom_server.engine.core.state_slots import SlotPool
from seqloom_server.engine.engine import Engine
from seqloom_server.engine.scheduling.scheduler import Scheduler
from seqloom_server.engine.scheduling.slice_fit import SchedulerLimits
from seqloom_server.metrics import Metrics

from helpers.plain_twin import plain_outputs
from helpers.tolerances import near


class KnownWeights:
    """Weights as the scheduler sees them, of a cost that is known: seconds a step and a cell."""

    def __init__(self, model="m", *, per_slice=0.0, per_step=1e-3, per_cell=1e-4, max_cells=1 << 20, whole_only=False):
        self.model, self.version, self.max_cells, self.whole_only = model, 1, max_cells, whole_only
        self.slots = SlotPool()
        self.cost = SliceCost(1.0, 1.0)
        self.cost.per_slice, self.cost.per_step, self.cost.per_cell = per_slice, per_step, per_cell


def keep_cost(weights, *, per_slice, per_step, per_cell):
    """Has the weights cost this whatever the clock says: what a gate holds up is no slice's time."""
    cost = weights.cost
    cost.per_slice, cost.per_step, cost.per_cell = per_slice, per_step, per_cell
    cost.observe = lambda *_: None


def make_sequence(weights, op=Op.INFER, **more):
    return Sequence(op, weights, OutputSpec(), sink=None, **more)


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


def make_frames(spec, *lengths, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.standard_normal((length, spec.input_size)).astype(spec.dtype) for length in lengths]


def make_state(spec, seed=1):
    """[rows, 1, width] per part of the state."""
    draw = np.random.default_rng(seed)
    shapes = spec.state_shapes().values()
    return tuple(0.5 * draw.standard_normal((rows, 1, width)).astype(spec.dtype) for rows, width in shapes)


def alone(weights, frames, state=None):
    """What the plain twin gives one sequence by itself: (logits [T, O], final state)."""
    _, logits, final = plain_outputs(weights.network, frames, state)
    return logits, final


class Collected:
    """A sink: the pieces of one sequence in order; wait() returns when it has ended, or raises what it failed with."""

    def __init__(self):
        self.pieces = []
        self.endings = 0
        self.error = None
        self._changed = asyncio.Event()

    def deliver(self, sequence, piece):
        self.pieces.append(piece)
        self.endings += piece.final_state is not None
        self._changed.set()

    def fail(self, sequence, error):
        self.error = error
        self.endings += 1
        self._changed.set()

    async def until(self, condition):
        """Waits until condition(self) holds. Raises TimeoutError rather than wait for ever."""
        async with asyncio.timeout(60):
            while not condition(self):
                self._changed.clear()
                await self._changed.wait()

    async def wait(self):
        await self.until(lambda self: self.endings)
        if self.error is not None:
            raise self.error
        return self

    @property
    def reason(self):
        """Why it failed, once."""
        assert self.endings == 1
        return self.error.reason

    @property
    def steps(self):
        return sum(piece.steps for piece in self.pieces)

    @property
    def values(self):
        return np.concatenate([piece.values for piece in self.pieces if piece.values is not None])

    @property
    def final_state(self):
        return self.pieces[-1].final_state


@contextlib.asynccontextmanager
async def running_engine(root, *specs, **options):
    """An engine that serves `specs` as the models m0, m1 ... from the folder `root`; options are ServerConfig's."""
    config = ServerConfig(**{"models": str(root), "runs": f"{root}/.runs", "device": "cpu", "threads": 1, **options})
    engine = Engine(config, Metrics())
    await engine.start()
    try:
        for number, spec in enumerate(specs):
            await engine.registry.create(f"m{number}", spec, seed=number)
        yield engine
    finally:
        engine.close()


def open_sequence(engine, op=Op.STREAM, model="m0", output=None, **more):
    """Opens a sequence; returns it and its sink."""
    sink = Collected()
    return engine.open(engine.registry.current(model), op, output or OutputSpec(), sink, **more), sink


def feed(engine, sequence, *parts, end=False):
    """Feeds arrays as chunks of their own, the last of them ending the sequence where `end`; none may be refused."""
    now = time.monotonic()
    chunks = [Chunk(part, now) for part in parts]
    if end:
        if not chunks:
            chunks = [Chunk(np.empty((0, sequence.weights.network.spec.input_size)), now, silent=True)]
        chunks[-1].last = True
    assert engine.feed([(sequence, chunks)]) == []


def close_to(spec):
    """The tolerances within which two ways of computing the same must agree."""
    tolerance = 1e-10 if spec.dtype == "float64" else 1e-5
    return near(spec.dtype, rtol=tolerance, atol=tolerance)


def assert_states_close(got, wanted, spec):
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, **close_to(spec))


class Gate:
    """Stands before a network: the device thread waits at it, and tells the batches that come through.

    batches: per call, the number of sequences of each step.
    """

    def __init__(self, weights):
        self.batches = []
        self.break_with = None
        self._advance = weights.network.advance
        self._passes = threading.Semaphore(0)
        self._arrived = threading.Semaphore(0)
        self._open = False
        weights.network.advance = self._pass

    def _pass(self, rows, batch_sizes, state):
        self.batches.append(batch_sizes.tolist())
        self._arrived.release()
        if not self._open:
            assert self._passes.acquire(timeout=60)
        if self.break_with is not None:
            raise self.break_with
        return self._advance(rows, batch_sizes, state)

    async def arrived(self):
        """Waits until the device thread has come to the gate once more."""
        assert await asyncio.to_thread(self._arrived.acquire, timeout=60)

    def let_pass(self, count=1):
        self._passes.release(count)

    def open(self):
        """Lets everything pass from now on."""
        self._open = True
        self._passes.release()
