"""An engine without a server around it: what goes in as chunks of sequences, and a sink for what comes out."""

import asyncio
import contextlib
import time

import numpy as np
from seqloom_server.config import ServerConfig
from seqloom_server.engine.core.sequence import Chunk, Op, OutputSpec
from seqloom_server.engine.engine import Engine
from seqloom_server.metrics import Metrics

from helpers.plain_twin import plain_outputs
from helpers.tolerances import near


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
