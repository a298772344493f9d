"""The plain twin of a stream group: n streams by themselves, one after the other, in float64."""

import numpy as np

from helpers.plain_twin import plain_outputs


class PlainGroup:
    """n streams of a network, each with a state of its own. states: [rows, n, width] per part."""

    def __init__(self, network, count, states=None):
        self.network, self.count = network, count
        shapes = network.spec.state_shapes().values()
        zeros = tuple(np.zeros((rows, count, width)) for rows, width in shapes)
        self.states = zeros if states is None else tuple(np.array(part, float) for part in states)
        self.steps = np.zeros(count, int)

    def set(self, streams, states):
        for part, new in zip(self.states, states, strict=True):
            part[:, streams] = new

    def reset(self, streams):
        for part in self.states:
            part[:, streams] = 0

    def run(self, streams, frames):
        """Advances streams [w] by frames [w, k, D]; returns logits [w, k, O]."""
        outputs = []
        for stream, xs in zip(streams, frames, strict=True):
            state = tuple(part[:, stream : stream + 1].copy() for part in self.states)
            logits = np.zeros((0, self.network.spec.output_size))
            if len(xs):
                _, logits, state = plain_outputs(self.network, xs, state)
            for part, new in zip(self.states, state, strict=True):
                part[:, stream] = new[:, 0]
            outputs.append(logits)
            self.steps[stream] += len(xs)
        return np.stack(outputs)

    def get(self, streams):
        return tuple(part[:, streams] for part in self.states)
