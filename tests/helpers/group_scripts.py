"""What tests ask of a stream group, drawn by Hypothesis, and its plain twin, which is asked for the same."""

import numpy as np
import pytest
import seqloom
from hypothesis import strategies as st

from helpers.tolerances import near

TOLERANCE = {"float32": near(rtol=1e-5, atol=1e-5), "float64": {"rtol": 1e-10, "atol": 1e-10}}
ACTIONS = ("step", "step", "send", "send", "receive", "run", "reset", "set_state", "state", "wrong")


@st.composite
def scripts(draw, actions=ACTIONS, longest=10):
    """(n, whether it begins with states, its actions: (what, streams or None for all, steps, turns of the loop))."""
    n = draw(st.integers(1, 30))
    some = st.none() | st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True)
    action = st.tuples(st.sampled_from(actions), some, st.integers(0, 12), st.integers(0, 3))
    return n, draw(st.booleans()), draw(st.lists(action, max_size=longest))


class Checked:
    """A group and its plain twin, which is asked for the same. due: the outputs of what was sent."""

    def __init__(self, group, plain, spec, draw):
        self.group, self.plain, self.spec, self.draw = group, plain, spec, draw
        self.due, self.close = [], TOLERANCE[spec.dtype]

    def frames(self, w, k):
        return self.draw.standard_normal((w, k, self.spec.input_size)).astype(self.spec.dtype)

    def states(self, w):
        return states_of(self.spec, w, self.draw)

    def assert_state(self, state, expected):
        for name, wanted in zip(self.spec.state_shapes(), expected, strict=True):
            np.testing.assert_allclose(getattr(state, name), wanted, **self.close)

    def assert_chunk(self, chunk, expected):
        outputs, first = expected
        np.testing.assert_array_equal(chunk.first_step, first)
        assert chunk.outputs.shape == outputs.shape
        np.testing.assert_allclose(chunk.outputs, outputs, **self.close)

    def run_plain(self, which, x):
        first = self.plain.steps[which]
        return self.plain.run(which, x), first

    async def do(self, what, streams, k):
        group, plain = self.group, self.plain
        which = list(range(plain.count)) if streams is None else streams
        x = self.frames(len(which), k)
        match what:
            case "step":
                expected = self.run_plain(which, x)
                self.assert_chunk(await group.step(x, streams), expected)
            case "send":
                await group.send(x, streams)
                self.due.append(self.run_plain(which, x))
            case "receive":
                if self.due:
                    self.assert_chunk(await group.receive(), self.due.pop(0))
            case "run":
                while self.due:
                    self.assert_chunk(await group.receive(), self.due.pop(0))
                chunks = [self.frames(plain.count, steps) for steps in (k, 0, 1)]
                expected = [self.run_plain(range(plain.count), chunk) for chunk in chunks]
                got = [chunk async for chunk in group.run(chunks)]
                for chunk, wanted in zip(got, expected, strict=True):
                    self.assert_chunk(chunk, wanted)
            case "reset":
                await group.reset(streams)
                plain.reset(which)
            case "set_state":
                new = self.states(len(which))
                plain.set(which, new)
                await group.set_state(seqloom.State(**dict(zip(self.spec.state_shapes(), new, strict=True))), streams)
            case "state":
                self.assert_state(await group.state(streams), plain.get(which))
            case "wrong":
                if k:
                    x[len(which) - 1, k - 1, 0] = np.nan
                    with pytest.raises(seqloom.InvalidArgument, match=f"step {k - 1} of stream {which[-1]}, number 0"):
                        await group.step(x, streams)

    async def end(self):
        state = await self.group.finish()
        self.assert_state(state, self.plain.states)
        for expected in self.due:
            self.assert_chunk(await self.group.receive(), expected)


def states_of(spec, w, draw):
    shapes = spec.state_shapes().values()
    return tuple(draw.standard_normal((rows, w, width)).astype(spec.dtype) for rows, width in shapes)
